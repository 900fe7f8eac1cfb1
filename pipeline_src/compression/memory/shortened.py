"""What a fake step leaves out because it repeats.

compress works run by run and range by range, and a large graph has tens of thousands of
ranges, each of them dozens of operations. What exists for one range is gone before the
next, so that the largest tells the peak; what exists for one run is at most a few of
them at once, so that coarser runs change a peak by a hundredth of an activation or so.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pipeline_src.compression import sources
from pipeline_src.compression.edges import receivers, reducing
from pipeline_src.quant import rectified

MOST_RUNS = 128  # of the largest activation


@contextmanager
def shortened(largest: int) -> Iterator[None]:
    """Within it fake steps take seconds; largest is the values of an activation.

    Where the index of edges has no values,

    # ASSUME: edges are spread evenly over their receivers.
    """
    with ExitStack() as stack:
        for module in (sources, rectified):
            values = max(module.RUN_VALUES, largest // MOST_RUNS)
            stack.enter_context(patch.object(module, "RUN_VALUES", values))
        stack.enter_context(patch.object(reducing.Plan, "ranges", _some_ranges))
        stack.enter_context(patch.object(receivers.Receivers, "of", _receivers))
        # What a model sorted before belongs to that model.
        stack.enter_context(patch.object(receivers, "_known", {}))
        yield


_all_ranges = reducing.Plan.ranges
_sort = receivers.Receivers.of


def _some_ranges(
    plan: reducing.Plan, device: torch.device
) -> Iterator[tuple[slice, slice]]:
    """The first, the largest and the last."""
    ranges = [*_all_ranges(plan, device)]
    if not ranges:
        return
    sizes = [edges.stop - edges.start for _, edges in ranges]
    for place in sorted({0, sizes.index(max(sizes)), len(ranges) - 1}):
        yield ranges[place]


def _receivers(index: Tensor, num_nodes: int) -> receivers.Receivers:
    if not isinstance(index, FakeTensor):
        return _sort(index, num_nodes)
    index, order = torch.sort(index, stable=True)
    if max(index.numel(), num_nodes) < 2**31:
        index, order = index.to(torch.int32), order.to(torch.int32)
    places: Any = torch.arange(num_nodes + 1, device=index.device)
    pointer = places * index.numel() // max(1, num_nodes)
    return receivers.Receivers(index, order, pointer)
