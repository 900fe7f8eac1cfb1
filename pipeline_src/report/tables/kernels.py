"""The block-wise kernels beside a copy and a clone of the tensor that they compress.

The bandwidth of an operation is what it must move over the seconds that it takes: it
reads the values and writes codes and metadata, or the other way round. A copy reads
and writes the values. The share

    ((value bytes + kept bytes) / kernel seconds) / (2 value bytes / copy seconds)

is 1 where a kernel moves bytes as fast as the machine copies them.

A copy is the same call whatever the width and the block size, so its median is taken
over all turns. That evens out what the allocator does at one setting or another: a
clone into pages that were just given back costs a fifth of one into fresh pages.
"""

import numpy as np
import pandas as pd
import xarray as xr

from pipeline_src.report.tables.table import (
    NOT_MEASURED,
    Table,
    text_column,
    three_digits,
)

MILLISECONDS = 1e3  # in a second
_COLUMNS = (
    "operation",
    "bits",
    "block_size",
    "implementation",
    "time_ratio_to_copy",
    "time_ratio_to_clone",
    "bandwidth_share",
    "time_median_ms",
    "time_min_ms",
    "time_max_ms",
    "copy_median_ms",
    "clone_median_ms",
)
_TIMES = ("time_median_ms", "time_min_ms", "time_max_ms")


def kernel_table(kernels: xr.Dataset) -> Table:
    """Time of operation x bits x block size x implementation, and its ratios.

    Args:
        kernels: as `measuring.kernels.benchmark_kernels` makes it.
    """
    moves = {
        move: float(np.median(kernels["move_time"].sel(move=move).values))
        for move in ("copy", "clone")
    }
    rows = [
        _kernel_row(
            kernels.sel(operation=operation, bits=bits, block_size=size), name, moves
        )
        for operation in kernels["operation"].values
        for bits in kernels["bits"].values
        for size in kernels["block_size"].values
        for name in kernels["implementation"].values
    ]
    values = pd.DataFrame(rows, columns=list(_COLUMNS))
    shown = values[["operation", "bits", "block_size", "implementation"]].astype(str)
    shown.columns = ["operation", "bits", "block size", "implementation"]
    median, low, high = (values[name].map(three_digits) for name in _TIMES)
    spread = median + " (" + low + " … " + high + ")"
    timed = values["time_median_ms"].notna()
    shown["time [ms] (min … max)"] = spread.where(timed, NOT_MEASURED)
    for header, column in {
        "time / copy": "time_ratio_to_copy",
        "time / clone": "time_ratio_to_clone",
        "bandwidth / copy's": "bandwidth_share",
    }.items():
        shown[header] = text_column(values[column], "{:.2f}")
    return Table(
        "Block-wise kernels",
        "Time: median (least … most) of the repeats, all operations taking turns. Copy"
        " writes into memory that is there, clone into fresh memory, as the kernels do;"
        " ratios below 1 are faster. Bandwidth: bytes that must move (input read,"
        " output written, metadata counted) over time. The other packages round to"
        " nearest and keep another number of bytes.",
        values,
        shown,
    )


def _kernel_row(
    one: xr.Dataset, implementation: str, moves: dict[str, float]
) -> tuple[object, ...]:
    """Return the row's values in the order of _COLUMNS.

    Args:
        one: of one operation, width and block size.
        implementation: the one to show.
        moves: median seconds of a copy and of a clone.
    """
    kernel = one.sel(implementation=implementation)
    seconds = kernel["kernel_time"].values
    median = np.median(seconds)
    copy, clone = moves["copy"], moves["clone"]
    values, kept = float(one["value_memory"]), float(kernel["kept_memory"])
    bandwidth, copy_bandwidth = (values + kept) / median, 2 * values / copy
    return (
        str(one["operation"].item()),
        int(one["bits"]),
        int(one["block_size"]),
        implementation,
        median / copy,
        median / clone,
        bandwidth / copy_bandwidth,
        median * MILLISECONDS,
        seconds.min() * MILLISECONDS,
        seconds.max() * MILLISECONDS,
        copy * MILLISECONDS,
        clone * MILLISECONDS,
    )
