"""How the memory of a step grows with the graph, the width and the depth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from plotnine import (
    aes,
    facet_wrap,
    geom_line,
    geom_point,
    ggplot,
    labs,
    scale_x_log10,
    scale_y_log10,
)

from pipeline_src.report.drawing.frames import ordered
from pipeline_src.report.drawing.measured import measured_alone
from pipeline_src.report.drawing.style import (
    figure_style,
    method_scales,
    not_measured,
    plain_numbers,
)

MIN_SIZES = 3  # of a line; two points joined would look like a law
# What grows -> what stays as it is.
AXES = {
    "num_nodes": ["layer", "num_layers", "hidden", "num_features"],
    "hidden": ["layer", "num_layers", "graph"],
    "num_layers": ["layer", "hidden", "graph"],
}


def plot_scaling(runs: xr.Dataset) -> ggplot:
    """Peak memory against nodes, width and depth: a line per method, log axes.

    One panel for each setting in which three sizes of something were measured. Graphs
    grow together where their features are as wide, since their widths count too.
    """
    measured = measured_alone(runs).dropna(subset=["peak"])
    measured = measured[measured["without"] == ""]
    panels = [
        _panel(group, axis)
        for axis, fixed in AXES.items()
        for _, group in measured.dropna(subset=[axis]).groupby(fixed, sort=False)
    ]
    frame = pd.concat([measured.iloc[:0], *panels], ignore_index=True)
    if frame.empty:
        return not_measured("Memory against size")
    frame["panel"], frame["method"] = ordered(frame["panel"]), ordered(frame["label"])
    return (
        ggplot(frame, aes("size", "peak", color="method", shape="method"))
        + geom_line(aes(linetype="method"), size=0.6)
        + geom_point(size=2)
        + facet_wrap("panel", scales="free_x", ncol=min(3, frame["panel"].nunique()))
        + scale_x_log10(breaks=_breaks(frame["size"]), labels=_short_counts)
        + scale_y_log10(labels=plain_numbers)
        + method_scales(frame["method"], "color", "shape", "linetype")
        + labs(
            x="Size (log scale)",
            y="Step peak [MiB] (log scale)",
            color="",
            shape="",
            linetype="",
        )
        + figure_style(1.2 + 2.3 * -(-frame["panel"].nunique() // 3))
    )


def _panel(group: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Methods of the group with enough sizes along the axis; maybe none."""
    one, sizes = group.iloc[0], group.groupby("label")[axis]
    network = f"{one['num_layers']} layers of {one['hidden']} features"
    if not one["num_layers"]:  # a class, whose shape is its own
        network = one["layer"]
    names = {
        "num_nodes": f"nodes\n{network}",
        "hidden": f"width [features]\n{one['graph']}, {one['num_layers']} layers",
        "num_layers": f"depth [layers]\n{one['graph']}, {one['hidden']} features",
    }
    enough = group[sizes.transform("nunique") >= MIN_SIZES]
    return enough.assign(size=enough[axis].astype(float), panel=names[axis])


def _breaks(sizes: pd.Series) -> list[float]:
    """Widths and depths as they are; numbers of nodes by decades."""
    decades = 10.0 ** np.arange(3, np.ceil(np.log10(sizes.max())) + 1)
    return sorted({*sizes[sizes < decades[0]], *decades})


def _short_counts(breaks: Sequence[Any]) -> list[str]:
    """10000 as 10k, 1000000 as 1M."""
    labels = []
    for value in breaks:
        if value >= 1e6:
            labels.append(f"{value / 1e6:g}M")
        else:
            labels.append(f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}")
    return labels
