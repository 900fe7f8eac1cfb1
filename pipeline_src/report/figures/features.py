"""How bits of stored features were found, and what accuracy their bytes buy."""

import numpy as np
import pandas as pd
import xarray as xr
from plotnine import (
    aes,
    facet_wrap,
    geom_hline,
    geom_point,
    geom_step,
    ggplot,
    labs,
    scale_x_continuous,
    scale_y_continuous,
)

from pipeline_src.report.drawing.frames import ordered, places
from pipeline_src.report.drawing.style import (
    figure_style,
    log_breaks,
    method_scales,
    not_measured,
    plain_numbers,
)

STRATEGIES = {
    "surrogate": "ABS",
    "greedy": "greedy",
    "random": "random",
    "uniform": "uniform",
}
FULL_BITS = 32
PANELS_IN_ROW = 3
# Points of accuracy below full precision at which evaluations are drawn at the edge.
LARGEST_DROP = 5.0


def plot_bit_search(features: xr.Dataset) -> ggplot:
    """The best packed ratio within the allowed drop after each evaluation."""
    frame = _searches(features)
    if frame.empty:
        return not_measured("Bit selection")
    frame = frame.dropna(subset=["best_per_value"]).copy()
    frame["ratio"] = FULL_BITS / frame["best_per_value"]
    frame["strategy"] = frame["strategy"].cat.remove_unused_categories()
    return (
        ggplot(frame, aes("number", "ratio", color="strategy", linetype="strategy"))
        + geom_step(size=0.7)
        # A strategy at its end, such as uniform, may have one evaluation in sight.
        + geom_point(aes(shape="strategy"), _last(frame), size=1.8)
        + facet_wrap("place", scales="free_y", ncol=_columns(frame))
        + method_scales(frame["strategy"], "color", "linetype", "shape")
        + scale_y_continuous(labels=plain_numbers)
        + labs(x="Evaluations", y="Packed ratio of the best so far")
        + figure_style(_height(frame))
    )


def plot_bit_front(features: xr.Dataset) -> ggplot:
    """Every evaluation by bits and accuracy, and the Pareto front of them all."""
    frame = _searches(features)
    if frame.empty:
        return not_measured("Memory and accuracy of bits")
    change = 100 * (frame["accuracy"] - frame["baseline"])
    frame["change"] = np.maximum(change, -LARGEST_DROP)
    limits = frame.drop_duplicates("place").assign(
        least=lambda one: -100 * one["max_drop"]
    )
    fronts = pd.concat(
        [_front(panel) for _, panel in frame.groupby("place", observed=True)]
    )
    return (
        ggplot(frame, aes("memory_per_value", "change"))
        + geom_hline(yintercept=0, color="#888888", size=0.4)
        + geom_hline(aes(yintercept="least"), limits, linetype="dashed", size=0.4)
        + geom_point(aes(color="strategy", shape="strategy"), size=1.3, alpha=0.7)
        + geom_step(data=fronts, direction="hv", size=0.6)
        + facet_wrap("place", ncol=_columns(frame))
        + method_scales(frame["strategy"], "color", "shape")
        + scale_x_continuous(
            trans="log2", breaks=log_breaks, minor_breaks=[], labels=plain_numbers
        )
        + labs(
            x="Packed bits per stored value (log scale)",
            y="Validation accuracy less FP32's [points]",
        )
        + figure_style(_height(frame))
    )


def _searches(features: xr.Dataset) -> pd.DataFrame:
    """Evaluations of the searches within max_drop."""
    if "evaluation" not in features.dims:
        return pd.DataFrame()
    names = ["number", "accuracy", "baseline", "max_drop", "memory_per_value"]
    names += ["best_per_value", "strategy", "graph", "model", "aim"]
    frame = features[names].to_dataframe().reset_index(drop=True)
    frame = frame[frame["aim"] == "max_drop"].reset_index(drop=True)
    frame["place"] = places(frame["graph"], frame["model"])
    frame["strategy"] = ordered(frame["strategy"].map(STRATEGIES))
    return frame


def _last(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop_duplicates(["place", "strategy"], keep="last")


def _front(panel: pd.DataFrame) -> pd.DataFrame:
    """Evaluations that none beats in both, by memory."""
    by_memory = panel.sort_values(
        ["memory_per_value", "accuracy"], ascending=[True, False]
    )
    best = by_memory["accuracy"].cummax()
    return by_memory[best > best.shift(fill_value=-1.0)]


def _columns(frame: pd.DataFrame) -> int:
    return min(PANELS_IN_ROW, frame["place"].nunique())


def _height(frame: pd.DataFrame) -> float:
    """Inches for the panels, with axis and legend."""
    return 1.2 + 1.9 * -(-frame["place"].nunique() // PANELS_IN_ROW)
