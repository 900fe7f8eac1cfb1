"""What trainings reached: accuracy against memory, and curves over epochs."""

import itertools

import numpy as np
import pandas as pd
import xarray as xr
from plotnine import (
    aes,
    expand_limits,
    facet_wrap,
    geom_hline,
    geom_line,
    geom_linerange,
    geom_point,
    geom_rect,
    geom_ribbon,
    ggplot,
    labs,
    scale_linetype_manual,
    scale_x_continuous,
)

from pipeline_src.report.drawing.frames import (
    MIB,
    name_fp32_memory,
    ordered,
    split_fp32,
    tidy_runs,
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

MIN_GAP = 0.02  # of the range of an axis; markers nearer than that hide each other


def plot_accuracy_memory(runs: xr.Dataset) -> ggplot:
    """Test accuracy against memory kept for backward: mean and std over seeds.

    FP32 keeps some thirty times more than the rest. On the same axis it would squeeze
    them into one spot, so it is a line with a band, its memory named in the strip.
    """
    frame = tidy_runs(runs[["test_accuracy", "saved_memory"]])
    frame = frame.dropna(subset=["test_accuracy", "saved_memory"])
    frame["accuracy"] = 100 * frame["test_accuracy"]
    frame["memory"] = frame["saved_memory"] / MIB
    points = (
        frame.groupby(["place", "method", "policy"], observed=True)
        .agg(
            memory=("memory", "mean"),
            accuracy=("accuracy", "mean"),
            std=("accuracy", "std"),
        )
        .reset_index()
    )
    points["low"] = points["accuracy"] - points["std"].fillna(0)
    points["high"] = points["accuracy"] + points["std"].fillna(0)
    fp32, compressed = split_fp32(name_fp32_memory(points))
    if compressed.empty:
        return not_measured("Accuracy against memory")
    compressed["memory"] = compressed.groupby("place", observed=True)[
        "memory"
    ].transform(_spread_out)
    band = {"xmin": -np.inf, "xmax": np.inf}
    return (
        ggplot(compressed, aes("memory", "accuracy"))
        + geom_rect(
            aes(ymin="low", ymax="high", **band),
            fp32,
            fill="#000000",
            alpha=0.08,
            inherit_aes=False,
        )
        + geom_hline(aes(yintercept="accuracy", linetype="method"), fp32, size=0.6)
        + geom_linerange(aes(ymin="low", ymax="high", color="method"), size=0.5)
        + geom_point(aes(color="method", shape="method"), size=2.4)
        + facet_wrap("place", scales="free", ncol=columns(compressed["place"]))
        + expand_limits(x=0)
        + scale_x_continuous(labels=plain_numbers, expand=(0.08, 0))
        + method_scales(compressed["method"], "color", "shape")
        + scale_linetype_manual(LINETYPES[1:])
        + labs(
            x="Memory kept for backward [MiB]",
            y="Test accuracy [%]",
            color="",
            shape="",
            linetype="",
        )
        + figure_style(wrapped_height(compressed["place"]))
    )


def plot_training_curves(runs: xr.Dataset) -> ggplot:
    """Training loss and validation accuracy per epoch: mean and std over seeds."""
    names = {
        "loss_curve": "Training loss",
        "validation_accuracy_curve": "Validation accuracy [%]",
    }
    frame = tidy_runs(runs[list(names)])
    frame["validation_accuracy_curve"] *= 100
    fp32 = set(frame.loc[frame["policy"] == "full", "label"])
    frame = frame.melt(
        ["place", "method", "seed", "epoch"], list(names), var_name="quantity"
    ).dropna(subset=["value"])
    if frame.empty:
        return not_measured("Training curves")
    frame["quantity"] = frame["quantity"].map(names)
    curves = (
        frame.groupby(["place", "quantity", "method", "epoch"], observed=True)["value"]
        .agg(["mean", "std"])
        .reset_index()
    )
    curves["panel"] = ordered(
        [
            f"{place}: {quantity}"
            for place, quantity in zip(curves["place"], curves["quantity"], strict=True)
        ]
    )
    curves["low"] = curves["mean"] - curves["std"].fillna(0)
    curves["high"] = curves["mean"] + curves["std"].fillna(0)
    return (
        ggplot(curves, aes("epoch", "mean", color="method", fill="method"))
        + geom_ribbon(aes(ymin="low", ymax="high"), alpha=0.15, color="none")
        + geom_line(aes(linetype="method"), size=0.6)
        + facet_wrap("panel", scales="free", ncol=2)
        + method_scales(curves["method"], "color", "fill", "linetype", fp32=fp32)
        + labs(x="Epoch", y="", color="", fill="", linetype="")
        + figure_style(wrapped_height(curves["panel"]))
    )


def _spread_out(memory: pd.Series) -> pd.Series:
    """Move points nearer than MIN_GAP of their range apart, so that all can be seen."""
    gap = MIN_GAP * (memory.max() - memory.min())
    moved = memory.sort_values(kind="stable")
    for left, right in itertools.pairwise(range(len(moved))):
        moved.iloc[right] = max(moved.iloc[right], moved.iloc[left] + gap)
    return moved.reindex(memory.index)
