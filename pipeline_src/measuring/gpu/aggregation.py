"""What the sparse product of a device does with its output, and whether it repeats.

An aggregation overwrites memory that may hold anything. The library fills it with zeros
where a product is not known to leave it unread (gnn/aggregation.py), so two things are
looked at: the library's own map on NaN, which must not show, and the bare product on
NaN, which tells whether the zeros are needed. `differing_values` counts, over several
repetitions, the values that are not those of the first, bit for bit.

A row's sum of k terms is off by at most k + 19 roundings of the sum of their sizes, on
a CPU as on a GPU: k products and sums, those of the self loop, and 16 for weights made
of two reciprocal roots of 2 ulp.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pipeline_src.gnn.aggregation import (
    Aggregation,
    gcn_aggregation,
    mean_aggregation,
)
from pipeline_src.graphs.graph import Adjacency
from pipeline_src.graphs.sizes import GraphSizes
from pipeline_src.measuring.gpu.clock import (
    Deadline,
    DeviceClock,
    Timed,
    buffers_beyond_cache,
    take_turns,
)
from pipeline_src.measuring.gpu.graphs import drawn_graph
from pipeline_src.measuring.gpu.results import Rows, quartiles

COLUMNS = (
    *("device", "map", "direction", "nodes", "entries", "width"),
    *("library_shows_nan", "bare_product_shows_nan"),
    *("repetitions", "differing_values", "cpu_difference_over_bound"),
    *("samples", "device_us_q1", "device_us", "device_us_q3", "device_us_zeros"),
)
WIDTHS = (128, 256, 40)
MAPS: dict[str, Callable[[Adjacency], Aggregation]] = {
    "mean": mean_aggregation,
    "gcn": gcn_aggregation,
}
REPETITIONS = 20
UNIT_ROUNDOFF = 2.0**-24


def look_at_aggregation(
    rows: Rows,
    name: str,
    device: torch.device,
    deadline: Deadline,
    *,
    sizes: GraphSizes,
) -> list[str]:
    """Look at each map, direction and width; returns those that the deadline left."""
    adjacency = drawn_graph("drawn", sizes, device).adjacency
    on_cpu = adjacency.to("cpu")
    clock = DeviceClock(device)
    cases = [
        (width, label, direction)
        for width in WIDTHS
        for label in MAPS
        for direction in DIRECTIONS
    ]
    while cases and deadline.left() > 0:
        width, label, direction = cases.pop(0)
        turned = DIRECTIONS[direction]
        one, other = turned(MAPS[label](adjacency)), turned(MAPS[label](on_cpu))
        terms = int(adjacency.degree.max()) + 19  # the graph is symmetric
        rows.add(
            {
                **{"device": name, "map": label, "direction": direction},
                **{"nodes": sizes.num_nodes, "entries": sizes.num_entries},
                "width": width,
                **compare_aggregations(one, other, width, terms, device),
                **_time(one, width, sizes.num_nodes, clock, device, deadline),
            }
        )
    return [f"{label} {direction}, width {width}" for width, label, direction in cases]


def compare_aggregations(
    aggregation: Aggregation,
    on_cpu: Aggregation,
    width: int,
    terms: int,  # roundings in a row's sum, at most
    device: torch.device,
) -> dict[str, Any]:
    """NaN that shows, values that differ between repetitions and from the CPU's."""
    generator = torch.Generator().manual_seed(width)
    given = torch.randn(on_cpu.matrix.shape[0], width, generator=generator)
    x = given.to(device)
    first = aggregation(x)
    difference = (first.cpu() - on_cpu(given)).abs()
    bound = 2 * terms * UNIT_ROUNDOFF * on_cpu(given.abs())
    over = torch.where(difference > 0, difference / bound, 0.0)
    output, bare = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    aggregation.into(x, output)
    torch.addmm(bare, aggregation.matrix, x, beta=0, out=bare)
    differing = 0
    for _ in range(REPETITIONS):
        aggregation.into(x, output)
        differing += int((output.view(torch.int32) != first.view(torch.int32)).sum())
    return {
        "library_shows_nan": int(output.isnan().sum()),
        "bare_product_shows_nan": int(bare.isnan().sum()),
        "repetitions": REPETITIONS,
        "differing_values": differing,
        "cpu_difference_over_bound": float(over.max()),
    }


def _reversed(aggregation: Aggregation) -> Aggregation:
    """The transposed map as a map."""
    return replace(
        aggregation,
        matrix=aggregation.transposed_matrix,
        transposed_matrix=aggregation.matrix,
    )


DIRECTIONS: dict[str, Callable[[Aggregation], Aggregation]] = {
    "forward": lambda aggregation: aggregation,
    "transposed": _reversed,
}


def _time(
    aggregation: Aggregation,
    width: int,
    num_nodes: int,
    clock: DeviceClock,
    device: torch.device,
    deadline: Deadline,
) -> dict[str, Any]:
    """Of an aggregation, and of the zeros that its output is filled with."""
    number = buffers_beyond_cache(4 * num_nodes * width, device)
    buffers = [torch.randn(num_nodes, width, device=device) for _ in range(number)]
    timed = Timed({}, [partial(aggregation, x) for x in buffers], 0)
    zeros = Timed({}, [torch.empty_like(x).zero_ for x in buffers], 0)
    take_turns(clock, [timed, zeros], warmup=2, repeats=10, deadline=deadline)
    low, median, high = quartiles(timed.device_seconds)
    return {
        "samples": len(timed.device_seconds),
        "device_us_q1": 1e6 * low,
        "device_us": 1e6 * median,
        "device_us_q3": 1e6 * high,
        "device_us_zeros": 1e6 * quartiles(zeros.device_seconds)[1],
    }
