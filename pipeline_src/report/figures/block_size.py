"""Memory and epoch time against the size of a block."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from plotnine import (
    aes,
    facet_wrap,
    geom_hline,
    geom_line,
    geom_point,
    ggplot,
    labs,
    scale_linetype_manual,
    scale_x_continuous,
    scale_y_continuous,
)

from pipeline_src.report.drawing.frames import (
    MIB,
    name_fp32_memory,
    ordered,
    places,
    split_fp32,
)
from pipeline_src.report.drawing.style import (
    LINETYPES,
    columns,
    figure_style,
    method_scales,
    not_measured,
    plain_numbers,
    wrapped_height,
)

SIDE_STEP = 1.12  # factor between markers of equal block size, on a log axis
MIN_SIZES = 3  # block sizes; fewer make no curve
SETTINGS = ["graph", "model", "label", "policy", "bits", "projection_ratio"]
SETTINGS += ["rows_per_block", "boundaries"]
KEYS = ["place", "family", "method", "policy", "rows_per_block"]


def plot_memory_block_size(runs: xr.Dataset) -> ggplot:
    """Memory kept for backward against rows per block; FP32 is named in the strip.

    Bytes are the same alone and beside other work, so those of training runs stand in
    where nothing was measured alone.
    """
    measured = _measured(runs, "saved_memory")
    trained = _trained(runs, "saved_memory")
    alone = set(zip(measured["graph"], measured["model"], strict=True))
    at = zip(trained["graph"], trained["model"], strict=True)
    trained = trained[[place not in alone for place in at]]
    frame = _with_families(pd.concat([measured, trained], ignore_index=True))
    memory = frame.groupby(KEYS, observed=True, sort=False)["value"].mean() / MIB
    _, compressed = split_fp32(name_fp32_memory(memory.rename("memory").reset_index()))
    if compressed.empty:
        return not_measured("Memory against block size")
    points = _side_by_side(compressed.rename(columns={"memory": "value"}))
    return _panels(points, "Memory kept for backward [MiB]")


def plot_epoch_time_block_size(runs: xr.Dataset) -> ggplot:
    """Epoch time against rows per block: every repeat, the median, and that of FP32.

    Measured alone only: training runs share the machine with each other.
    """
    frame = _with_families(_measured(runs, "epoch_time"))
    _, repeats = split_fp32(frame)
    if repeats.empty:
        return not_measured("Epoch time against block size")
    medians = frame.groupby(KEYS, observed=True, sort=False)["value"].median()
    fp32, compressed = split_fp32(medians.reset_index())
    return _panels(
        _side_by_side(compressed),
        "Time per epoch [s]",
        geom_hline(
            aes(yintercept="value", linetype="method"), fp32, color="black", size=0.6
        ),
        geom_point(data=_side_by_side(repeats), size=1.2, alpha=0.4),
        scale_linetype_manual(LINETYPES[1:]),
        scale_y_continuous(labels=plain_numbers, expand=(0.1, 0)),
    )


def _measured(runs: xr.Dataset, quantity: str) -> pd.DataFrame:
    """Settings and `value` of what was measured alone, one row per method or repeat."""
    names = {f"measurement_{name}": name for name in SETTINGS}
    names[f"measured_{quantity}"] = "value"
    frame = runs[list(names)].to_dataframe().reset_index()
    return _with_rows(frame.rename(columns=names)[[*names.values()]])


def _trained(runs: xr.Dataset, quantity: str) -> pd.DataFrame:
    """Settings and `value` as training runs noted it, one row per seed."""
    frame = runs[[quantity, *SETTINGS]].to_dataframe().reset_index()
    frame = frame.rename(columns={quantity: "value"})
    return _with_rows(frame[[*SETTINGS, "value"]])


def _with_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Values of FP32 and of the published layout, which alone is blocked by G/R."""
    frame = frame[frame["policy"].isin(["full", "exact"])]
    return frame.dropna(subset=["value"])


def _with_families(frame: pd.DataFrame) -> pd.DataFrame:
    """Add place, method and family: methods that differ in their block size alone."""
    kinds = {"even": "even", "clipped_normal": "variance-minimised"}
    families = [
        f"INT{bits}, D/R = {ratio}, {kinds[kind]} boundaries"
        for bits, ratio, kind in zip(
            frame["bits"], frame["projection_ratio"], frame["boundaries"], strict=True
        )
    ]
    return frame.assign(
        place=places(frame["graph"], frame["model"]),
        method=frame["label"],
        family=ordered(families),
    )


def _side_by_side(frame: pd.DataFrame) -> pd.DataFrame:
    """Move families that share a block size a little apart."""
    step = SIDE_STEP ** frame["family"].cat.codes.astype(float)
    return frame.assign(rows_per_block=frame["rows_per_block"] * step)


def _panels(points: pd.DataFrame, y: str, *more: Any) -> ggplot:
    """Points joined by family, a panel per place, on what else is to be drawn."""
    return (
        ggplot(points, aes("rows_per_block", "value", color="family", shape="family"))
        + list(more)
        + _lines(points)
        + geom_point(size=2.4)
        + facet_wrap("place", scales="free_y", ncol=columns(points["place"]))
        + _block_size_scale(points)
        + method_scales(points["family"], "color", "shape")
        + labs(x="Rows per block, G/R (log scale)", y=y, color="", shape="")
        + figure_style(wrapped_height(points["place"]))
    )


def _lines(points: pd.DataFrame) -> list:
    """Lines of the families with enough block sizes; between two a line is a guess."""
    sizes = points.groupby(["place", "family"], observed=True)["rows_per_block"]
    enough = points[sizes.transform("nunique") >= MIN_SIZES]
    return [] if enough.empty else [geom_line(data=enough, size=0.6)]


def _block_size_scale(frame: pd.DataFrame) -> scale_x_continuous:
    breaks = sorted({2 ** round(np.log2(rows)) for rows in frame["rows_per_block"]})
    # Minor breaks are derived from two major ones; there may be only one.
    return scale_x_continuous(
        trans="log2", breaks=breaks, minor_breaks=[], labels=plain_numbers
    )
