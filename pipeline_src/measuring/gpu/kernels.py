"""Time on the device of the kernels, beside moving the same tensor.

Rivals of one width and block size, and lean's kernels of one width, take turns with a
copy and a clone of the tensor; see clock.py for what a sample is. A share of 1 means
that a kernel moves what it must as fast as a copy moves its own bytes.
"""

from typing import Any

import torch

from pipeline_src.measuring.gpu.clock import (
    Deadline,
    DeviceClock,
    Timed,
    take_turns,
)
from pipeline_src.measuring.gpu.kernel_calls import (
    buffers_of,
    kernels_on,
    lean_kernels_on,
    moves_of,
)
from pipeline_src.measuring.gpu.results import Rows, quartiles

COLUMNS = (
    *("device", "operation", "implementation", "bits", "block_size"),
    *("rows", "width", "buffers", "samples", "host_bound_samples"),
    *("device_us_q1", "device_us", "device_us_q3", "host_us"),
    *("kept_bytes", "bytes", "share_of_copy"),
)
# Bits, and values of a block, or its rows where kernels are lean's.
SETTINGS = (
    ("block-wise", 2, 256),
    ("lean", 2, 8),
    ("block-wise", 1, 256),
    ("block-wise", 4, 256),
    ("block-wise", 8, 256),
    ("lean", 1, 8),
    ("lean", 4, 8),
    ("lean", 8, 8),
    ("block-wise", 2, 1024),
    ("block-wise", 2, 63),
)
CALLS = {"block-wise": kernels_on, "lean": lean_kernels_on}
ARXIV_HIDDEN = (169_343, 128)
TINY = (600, 16)


def time_kernels(
    rows: Rows,
    name: str,
    device: torch.device,
    deadline: Deadline,
    *,
    shape: tuple[int, int] = ARXIV_HIDDEN,
    compile: bool = True,
    warmup: int = 3,
    repeats: int = 20,
) -> list[str]:
    """Time each setting in turn; returns those that the deadline left out."""
    clock = DeviceClock(device)
    buffers = buffers_of(shape, device)
    settings = list(SETTINGS)
    while settings and deadline.left() > 0:
        kind, bits, block_size = settings.pop(0)
        kernels = CALLS[kind](buffers, bits, block_size, compile)
        rivals = [*moves_of(buffers), *kernels]
        take_turns(clock, rivals, warmup=warmup, repeats=repeats, deadline=deadline)
        for timed in rivals:
            rows.add(
                {
                    "device": name,
                    "rows": shape[0],
                    "width": shape[1],
                    "buffers": len(buffers),
                    **{"bits": bits, "block_size": block_size},
                    **timed.labels,
                    **summary_of(timed, copy=rivals[0]),
                }
            )
    return [f"{kind}, {bits} bits, blocks of {size}" for kind, bits, size in settings]


def summary_of(timed: Timed, copy: Timed) -> dict[str, Any]:
    """Median and quartiles of the samples, and the share of a copy's bandwidth."""
    first, median, third = quartiles(timed.device_seconds)
    copied = copy.nbytes / quartiles(copy.device_seconds)[1]
    return {
        "samples": len(timed.device_seconds),
        "host_bound_samples": timed.host_bound,
        "device_us_q1": 1e6 * first,
        "device_us": 1e6 * median,
        "device_us_q3": 1e6 * third,
        "host_us": 1e6 * quartiles(timed.host_seconds)[1],
        "bytes": timed.nbytes,
        "share_of_copy": timed.nbytes / median / copied,
    }
