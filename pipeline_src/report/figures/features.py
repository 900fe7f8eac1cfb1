"""How bits of stored features were found, and what their bytes buy and lose."""

import numpy as np
import pandas as pd
import xarray as xr
from plotnine import (
    aes,
    coord_flip,
    facet_wrap,
    geom_hline,
    geom_point,
    geom_step,
    ggplot,
    labs,
    position_dodge,
    scale_x_continuous,
    scale_x_discrete,
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
PLACE = ("graph", "model", "hyperparameters")
PUBLISHED = "published"  # begins the text of hyper-parameters that are all published
PANELS_IN_ROW = 3
# Points of accuracy below full precision at which evaluations are drawn at the edge.
LARGEST_DROP = 5.0
SELECTED = ("ABS tuned", "ABS")  # the first that was measured is the method's result
AGAINST = {
    "measured_full_test_accuracy": "less FP32's",
    "measured_full_tuned_test_accuracy": "less FP32's, tuned as well",
}
UNRELIABLE = "computers"  # means stand with and without it


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


def plot_bit_drops(features: xr.Dataset) -> ggplot:
    """Test accuracy of selected bits less FP32's, as trained and as tuned.

    A small mark per seed, a large one for their mean; below, means over places. Seeds
    beyond LARGEST_DROP on either side are drawn at the edge, but count as they are.
    """
    frame = _changes(features)
    if frame.empty:
        return not_measured("Drops of selected bits")
    means = _mean_changes(frame)
    rows = list(dict.fromkeys(means["place"]))[::-1]  # the first on top
    for one in (frame, means):
        one["change"] = one["change"].clip(-LARGEST_DROP, LARGEST_DROP)
    apart = position_dodge(0.6)
    return (
        ggplot(means, aes("place", "change", color="against", shape="against"))
        + geom_hline(yintercept=0, color="#888888", size=0.4)
        + geom_point(data=frame, size=0.8, alpha=0.5, position=apart)
        + geom_point(size=2.4, position=apart)
        + method_scales(means["against"], "color", "shape")
        + scale_x_discrete(limits=rows)
        + coord_flip()
        + labs(x="", y="Test accuracy of selected bits less full precision's [points]")
        + figure_style(1.0 + 0.3 * len(rows))
    )


def _changes(features: xr.Dataset) -> pd.DataFrame:
    """What each seed gains by the method's result, against either full precision."""
    if "measurement" not in features.dims:
        return pd.DataFrame()
    names = [*AGAINST, "measured_test_accuracy", "method"]
    names += [f"measurement_{name}" for name in PLACE]
    frame = features[names].to_dataframe().reset_index(drop=True)
    measured = [name for name in SELECTED if name in set(frame["method"])]
    frame = frame[frame["method"].isin(measured[:1])]
    frame = frame.rename(columns=lambda name: name.removeprefix("measurement_"))
    frame["place"] = _names(frame).astype(str)
    parts = [
        frame[["graph", "place"]].assign(
            against=against,
            change=100 * (frame["measured_test_accuracy"] - frame[full]),
        )
        for full, against in AGAINST.items()
    ]
    joined = pd.concat(parts, ignore_index=True).dropna(subset=["change"])
    return joined.assign(against=ordered(joined["against"]))


def _mean_changes(frame: pd.DataFrame) -> pd.DataFrame:
    """Means of places, then the mean of these with and without UNRELIABLE."""
    keys = ["graph", "place", "against"]
    means = frame.groupby(keys, observed=True, sort=False)["change"].mean()
    by_place = means.reset_index()
    reliable = by_place[by_place["graph"] != UNRELIABLE]
    chosen = {"mean": by_place}
    if 0 < len(reliable) < len(by_place):
        chosen[f"mean without {UNRELIABLE}"] = reliable
    over_places = [
        rows.groupby("against", observed=True, as_index=False)["change"]
        .mean()
        .assign(place=name)
        for name, rows in chosen.items()
    ]
    return pd.concat([by_place, *over_places], ignore_index=True)


def _searches(features: xr.Dataset) -> pd.DataFrame:
    """Evaluations of the searches within max_drop."""
    if "evaluation" not in features.dims:
        return pd.DataFrame()
    names = ["number", "accuracy", "baseline", "max_drop", "memory_per_value"]
    names += ["best_per_value", "strategy", *PLACE, "aim"]
    frame = features[names].to_dataframe().reset_index(drop=True)
    frame = frame[frame["aim"] == "max_drop"].reset_index(drop=True)
    frame["place"] = _names(frame)
    frame["strategy"] = ordered(frame["strategy"].map(STRATEGIES))
    return frame


def _names(frame: pd.DataFrame) -> "pd.Categorical[str]":
    """Graph and model; and the hyper-parameters, if any is not the published one."""
    own = frame["hyperparameters"].where(
        ~frame["hyperparameters"].str.startswith(PUBLISHED), ""
    )
    return places(frame["graph"], (frame["model"] + ", " + own).str.rstrip(", "))


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
