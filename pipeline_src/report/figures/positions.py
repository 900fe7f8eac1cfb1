"""Where values lie in their blocks, and how well the fitted laws say so."""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from plotnine import (
    aes,
    facet_grid,
    geom_abline,
    geom_col,
    geom_line,
    geom_point,
    ggplot,
    labs,
    scale_color_manual,
    scale_linetype_manual,
    scale_shape_manual,
    scale_y_sqrt,
)

from pipeline_src.report.drawing.frames import ordered
from pipeline_src.report.drawing.style import (
    SHAPES,
    figure_style,
    grid_height,
    not_measured,
    plain_numbers,
)

LAW_NAMES = {
    "uniform": "uniform",
    "normal": "normal",
    "truncated_normal": "truncated normal",
    "clipped_normal": "clipped normal",
}
LAW_COLORS = ("#E69F00", "#0072B2", "#009E73", "#D55E00")
LAW_LINETYPES = ("dotted", "dashed", "dashdot", "solid")
END_GAP = 0.1  # bin units from the interior to the bar of an end mass


def plot_position_histograms(distributions: Sequence[xr.Dataset]) -> ggplot:
    """Observed positions of the last epoch with the fitted laws, end masses apart."""
    if not distributions:
        return not_measured("Positions of activations")
    parts = [_histogram_frames(dataset) for dataset in distributions]
    observed = _join([part[0] for part in parts])
    fitted = _join([part[1] for part in parts])
    interior, ends = fitted[~fitted["end"]], fitted[fitted["end"]]
    ends = ends[ends["share"] > 0]
    return (
        ggplot(observed, aes("position", "share"))
        + geom_col(aes(width="width"), fill="#BBBBBB")
        + geom_line(aes(color="law", linetype="law"), interior, size=0.6)
        + geom_point(aes(color="law", shape="law"), ends, size=1.5, stroke=0.2)
        + facet_grid("tensor", "projected", scales="free_y")
        + scale_y_sqrt(labels=plain_numbers)
        + _law_scales()
        + labs(
            x="Position in the block [bin]; outside: share exactly at an end",
            y="Share of values [%] (square-root scale)",
            color="",
            linetype="",
            shape="",
        )
        + figure_style(grid_height(observed["tensor"]))
    )


def plot_quantile_quantile(distributions: Sequence[xr.Dataset]) -> ggplot:
    """Observed quantiles of the last epoch against those of the fitted laws."""
    if not distributions:
        return not_measured("Quantiles of positions")
    frame = _join([_quantile_frame(dataset) for dataset in distributions])
    return (
        ggplot(frame, aes("fitted", "observed", color="law", linetype="law"))
        + geom_abline(slope=1, intercept=0, color="#888888", size=0.4)
        + geom_line(size=0.7)
        + facet_grid("tensor", "projected")
        + _law_scales("color", "linetype")
        + labs(
            x="Quantile of the fitted law [bin]",
            y="Observed quantile [bin]",
            color="",
            linetype="",
        )
        + figure_style(grid_height(frame["tensor"]))
    )


def _histogram_frames(dataset: xr.Dataset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the observed and the fitted shares [%] of the last epoch, tidy.

    The masses exactly at the ends stand just outside the interior, not on it.
    """
    last = dataset.isel(epoch=-1)
    centres = np.asarray(last["bin"].values, dtype=float)
    width = centres[1] - centres[0]
    ends = {
        "minimum": centres[0] - width / 2 - END_GAP,
        "maximum": centres[-1] + width / 2 + END_GAP,
    }
    frames = []
    for suffix in ("", "_fitted"):
        interior = last[f"histogram{suffix}"].to_dataframe(name="share").reset_index()
        parts = [interior.rename(columns={"bin": "position"}).assign(end=False)]
        for end, position in ends.items():
            mass = last[f"mass_at_{end}{suffix}"].to_dataframe(name="share")
            parts.append(mass.reset_index().assign(position=position, end=True))
        frame = pd.concat(parts, ignore_index=True).dropna(subset=["share"])
        frame["share"] *= 100
        frame["width"] = np.where(frame["end"], END_GAP, width)
        frames.append(_name_panels(frame, dataset))
    return frames[0], frames[1]


def _quantile_frame(dataset: xr.Dataset) -> pd.DataFrame:
    last = dataset[["quantile_observed", "quantile_fitted"]].isel(epoch=-1)
    frame = last.to_dataframe().reset_index()
    frame = frame.rename(
        columns={"quantile_observed": "observed", "quantile_fitted": "fitted"}
    )
    return _name_panels(frame, dataset).dropna(subset=["observed", "fitted"])


def _name_panels(frame: pd.DataFrame, dataset: xr.Dataset) -> pd.DataFrame:
    """Add what panels are named after: tensor with its graph, projected, law."""
    spec = json.loads(dataset.attrs["spec"])
    frame["tensor"] = [
        f"{spec['graph']}\n{name.replace('.', ' ').replace('_', ' ')}"
        for name in frame["tensor"]
    ]
    frame["projected"] = pd.Categorical(
        np.where(frame["projected"] == 1, "projected", "not projected"),
        ["not projected", "projected"],
    )
    if "law" in frame:
        frame["law"] = pd.Categorical(
            frame["law"].map(LAW_NAMES), list(LAW_NAMES.values())
        )
    return frame


def _join(frames: list[pd.DataFrame]) -> pd.DataFrame:
    frame = pd.concat(frames, ignore_index=True)
    frame["tensor"] = ordered(frame["tensor"])
    return frame


def _law_scales(*aesthetics: str) -> list:
    scales = {
        "color": scale_color_manual(
            dict(zip(LAW_NAMES.values(), LAW_COLORS, strict=True))
        ),
        "linetype": scale_linetype_manual(
            dict(zip(LAW_NAMES.values(), LAW_LINETYPES, strict=True))
        ),
        "shape": scale_shape_manual(
            dict(zip(LAW_NAMES.values(), SHAPES, strict=False))
        ),
    }
    return [scales[name] for name in aesthetics or scales]
