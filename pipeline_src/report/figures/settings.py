"""Memory against accuracy of settings of activation compression, as searched."""

import numpy as np
import pandas as pd
import xarray as xr
from plotnine import (
    aes,
    facet_wrap,
    geom_hline,
    geom_point,
    geom_step,
    geom_vline,
    ggplot,
    labs,
    scale_x_continuous,
)

from pipeline_src.report.drawing.frames import MIB, ordered, places
from pipeline_src.report.drawing.style import (
    figure_style,
    log_breaks,
    method_scales,
    not_measured,
    plain_numbers,
)

# Name of the strategy that an aim gives the surrogate; the others have one search.
ABS = {"max_drop": "ABS within a drop", "max_memory": "ABS within a memory"}
# Points of accuracy below full precision at which evaluations are drawn at the edge.
LARGEST_DROP = 5.0
PANELS_IN_ROW = 2


def plot_setting_front(settings: xr.Dataset) -> ggplot:
    """Every evaluation by memory and accuracy, and the Pareto front of them all."""
    if "evaluation" not in settings.dims:
        return not_measured("Settings of activation compression")
    frame = _evaluations(settings)
    limits = frame.drop_duplicates("place")
    fronts = pd.concat(
        [_front(panel) for _, panel in frame.groupby("place", observed=True)]
    )
    return (
        ggplot(frame, aes("memory", "change"))
        + geom_hline(yintercept=0, color="#888888", size=0.4)
        + geom_hline(
            aes(yintercept="least"),
            limits.dropna(subset=["least"]),
            linetype="dashed",
            size=0.4,
        )
        + geom_vline(
            aes(xintercept="most"),
            limits.dropna(subset=["most"]),
            linetype="dashed",
            size=0.4,
        )
        + geom_step(data=fronts, direction="hv", size=0.6)
        + geom_point(aes(color="strategy", shape="strategy"), size=1.8, alpha=0.8)
        + facet_wrap("place", ncol=PANELS_IN_ROW, scales="free_x")
        + method_scales(frame["strategy"], "color", "shape")
        + scale_x_continuous(
            trans="log2", breaks=log_breaks, minor_breaks=[], labels=plain_numbers
        )
        + labs(
            x="Memory [MiB] (log scale)",
            y="Validation accuracy less FP32's [points]",
        )
        + figure_style(1.2 + 2.2 * -(-frame["place"].nunique() // PANELS_IN_ROW))
    )


def _evaluations(settings: xr.Dataset) -> pd.DataFrame:
    names = ["accuracy", "memory", "baseline", "full_memory", "max_drop", "max_memory"]
    names += ["strategy", "aim", "graph", "model"]
    frame = settings[names].to_dataframe().reset_index(drop=True)
    memory = (frame["full_memory"] / MIB).map("{:.3g}".format)
    panels = places(frame["graph"], frame["model"])
    frame["place"] = ordered(
        f"{panel} (FP32: {mib} MiB)" for panel, mib in zip(panels, memory, strict=True)
    )
    searched = frame["strategy"] == "surrogate"
    frame["strategy"] = ordered(
        frame["aim"].map(ABS).where(searched, frame["strategy"])
    )
    change = 100 * (frame["accuracy"] - frame["baseline"])
    frame["change"] = np.maximum(change, -LARGEST_DROP)
    frame["memory"] /= MIB
    frame["least"] = -100 * frame["max_drop"]
    frame["most"] = frame["max_memory"] / MIB
    return frame


def _front(panel: pd.DataFrame) -> pd.DataFrame:
    """Evaluations that none beats in both, by memory."""
    by_memory = panel.sort_values(["memory", "accuracy"], ascending=[True, False])
    best = by_memory["accuracy"].cummax()
    return by_memory[best > best.shift(fill_value=-1.0)]
