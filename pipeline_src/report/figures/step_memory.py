"""The memory of one training step, from the first operation to the last."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from plotnine import (
    aes,
    element_blank,
    facet_grid,
    geom_col,
    geom_text,
    geom_vline,
    ggplot,
    labs,
    scale_fill_manual,
    scale_x_continuous,
    scale_y_continuous,
    theme,
)

from pipeline_src.report.drawing.frames import MIB, ordered
from pipeline_src.report.drawing.style import (
    COLORS,
    figure_style,
    grid_height,
    not_measured,
    plain_numbers,
)

OTHER = "other operations"
NOT_KEPT = {"gradients": "#BBBBBB", "inside kernels": "#555555"}
_MOST_OPERATIONS = 5  # with a colour of their own


def plot_step_memory(
    timeline: Sequence[dict[str, Any]],  # of a MemoryReport
) -> ggplot:
    """Bytes alive over a step, coloured by the operation of forward that made them.

    A bar is a stretch of one operation in one module, at its highest; dashed lines
    part forward, backward and update. Below each other: without, and with compress.
    """
    if not timeline:
        return not_measured("Memory over a step")
    frame = pd.DataFrame(list(timeline))
    frame["method"] = ordered(frame["method"])
    frame["made_by"] = _named_makers(frame)
    keys = ["method", "index", "phase", "made_by"]
    frame = frame.groupby(keys, observed=True)["nbytes"].sum().reset_index()
    unit, name = (MIB * 1024, "GiB") if _heights(frame).max() >= 2**30 else (MIB, "MiB")
    frame["memory"] = frame["nbytes"] / unit
    # Every method's step is as wide as the others': what takes long is not told here.
    last = frame.groupby("method", observed=True)["index"].transform("max")
    frame["share"], frame["width"] = (frame["index"] + 0.5) / (last + 1), 1 / (last + 1)
    peaks = _peaks(frame, name)
    makers = frame["made_by"].cat.categories
    # The largest is the last, at the bottom.
    colored = [maker for maker in reversed(makers) if maker not in NOT_KEPT]
    colors = NOT_KEPT | dict(zip(colored, COLORS, strict=False))
    return (
        ggplot(frame, aes("share", "memory"))
        + geom_col(aes(fill="made_by", width="width"))
        + geom_vline(
            aes(xintercept="start"), _phases(frame), linetype="dashed", size=0.4
        )
        + geom_text(
            aes("share", "memory", label="label", ha="side"), peaks, size=7, va="bottom"
        )
        + facet_grid("method ~ .")
        + scale_fill_manual({maker: colors[maker] for maker in makers})
        + scale_x_continuous(expand=(0.005, 0))
        + scale_y_continuous(labels=plain_numbers, expand=(0, 0, 0.12, 0))
        + labs(
            x="Forward, backward, update: operations in order",
            y=f"Above model and data [{name}]",
            fill="",
        )
        + figure_style(grid_height(frame["method"]) + 1.0)
        + theme(axis_text_x=element_blank(), axis_ticks_major_x=element_blank())
    )


def _named_makers(frame: pd.DataFrame) -> "pd.Categorical[str]":
    """The makers of the most bytes by name, what is not kept on top of the stack."""
    kept = frame[~frame["made_by"].isin(NOT_KEPT)]
    keys = ["made_by", "method", "index"]
    most = kept.groupby(keys, observed=True)["nbytes"].sum().groupby("made_by").max()
    named = [*most.sort_values(ascending=False).index[:_MOST_OPERATIONS]]
    makers = frame["made_by"].where(frame["made_by"].isin([*named, *NOT_KEPT]), OTHER)
    # The first category lies on top.
    order = [*reversed(NOT_KEPT), OTHER, *reversed(named)]
    return pd.Categorical(makers, [one for one in order if one in set(makers)])


def _heights(frame: pd.DataFrame) -> "pd.Series[float]":
    return frame.groupby(["method", "index"], observed=True)["nbytes"].sum()


def _phases(frame: pd.DataFrame) -> pd.DataFrame:
    """Where a phase begins, but for the first."""
    frame = frame.assign(start=frame["share"] - frame["width"] / 2)
    starts = frame.groupby(["method", "phase"], observed=True, as_index=False)
    found = starts["start"].min()
    return found[found["start"] > 0]


def _peaks(frame: pd.DataFrame, unit: str) -> pd.DataFrame:
    """The highest bar of each method, with its height in words."""
    keys = ["method", "share"]
    bars = frame.groupby(keys, observed=True, as_index=False)["memory"].sum()
    peaks = bars.loc[bars.groupby("method", observed=True)["memory"].idxmax()]
    return peaks.assign(
        label=[f"peak {value:.3g} {unit}" for value in peaks["memory"]],
        side=["left" if share < 0.5 else "right" for share in peaks["share"]],
    )
