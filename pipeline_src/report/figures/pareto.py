"""Which methods cost least: time, memory and gradient error of each in one panel."""

import numpy as np
import pandas as pd
import xarray as xr
from plotnine import (
    aes,
    element_text,
    facet_wrap,
    geom_blank,
    geom_label,
    geom_point,
    geom_segment,
    geom_step,
    ggplot,
    guide_colorbar,
    guide_legend,
    guides,
    labs,
    scale_color_gradientn,
    scale_shape_manual,
    scale_x_continuous,
    scale_y_continuous,
    theme,
)

from pipeline_src.report.drawing.measured import measured_alone
from pipeline_src.report.drawing.placement import place_labels
from pipeline_src.report.drawing.style import (
    WIDTH,
    figure_style,
    log_breaks,
    not_measured,
    plain_numbers,
)

MIN_METHODS = 5  # of a panel; fewer make no front
# Sums over many nodes, taken in another order, are off by far more than the square of
# float32's unit roundoff, 2**-48; bfloat16 by about the square of its own, 2**-16.
EXACT_BELOW = 2.0**-24
KINDS = ["exact gradients", "approximate gradients", "error not measured"]
SHAPES = dict(zip(KINDS, ("D", "o", "X"), strict=True))
# Of the map viridis, told apart by every common kind of colour vision; its yellow end
# is left out, it is too faint on white.
VIRIDIS = ["#440154", "#3B528B", "#21918C", "#5EC962"]
ERROR_BREAKS = [1e-6, 1e-3, 1.0]  # far enough apart for a short colour bar
PANEL_HEIGHT = 2.9  # inches
LABEL_SIZE = 7  # points
_LABEL_HEIGHT = 1.25 * LABEL_SIZE / 72  # inches
_LETTER_WIDTH = 0.55 * LABEL_SIZE / 72  # inches; of a sans serif letter, on average
_BESIDE_PANEL = 0.8  # inches of axis and margins
_MARGIN = 0.14  # of the range, on either side of the points
_LEADER = 0.12  # inches from point to label from which on a line joins them


def plot_pareto(runs: xr.Dataset) -> ggplot:
    """Peak memory against epoch time, a point per method, coloured by gradient error.

    Time is that of PyTorch Geometric's eager training where all panels have it, else in
    seconds. The dashed stairs run from edge to edge, so that no step of them is taken
    for a line to a label: above and right of them every point is beaten in both time
    and memory by a method on them.
    """
    frame = measured_alone(runs)
    frame = frame[frame["without"] == ""].dropna(subset=["time", "peak"])
    enough = frame.groupby("place", observed=True)["label"].transform("size")
    frame = frame[enough >= MIN_METHODS].copy()
    if frame.empty:
        return not_measured("Memory against time")
    frame["place"] = frame["place"].cat.remove_unused_categories()
    frame, x_title = _with_ratios(frame)
    unknown, exact = frame["error"].isna(), frame["error"] < EXACT_BELOW
    kinds = np.select([unknown, exact], [KINDS[2], KINDS[0]], KINDS[1])
    frame["kind"] = pd.Categorical(kinds, [kind for kind in KINDS if kind in kinds])
    panels = frame.groupby("place", observed=True)
    frame = pd.concat([_with_labels(panel) for _, panel in panels])
    far = frame[frame["distance"] > _LEADER]
    lossy = frame["kind"] == KINDS[1]
    return (
        ggplot(frame, aes("cost", "peak"))
        + geom_blank(data=_corners(frame))
        + geom_step(
            data=_fronts(frame),
            color="#9AA5B1",
            size=0.5,
            linetype="dashed",
            direction="hv",
        )
        + geom_segment(
            aes(xend="leader_x", yend="leader_y"), far, color="#777777", size=0.25
        )
        + geom_point(aes(shape="kind"), frame[~lossy], color="black", size=2.2)
        + geom_point(aes(shape="kind", color="error"), frame[lossy], size=2.6)
        + geom_label(  # no border: only what lies below is hidden
            aes("label_x", "label_y", label="label"),
            size=LABEL_SIZE,
            fill="white",
            label_size=0,
            label_padding=0.05,
        )
        + facet_wrap("place", scales="free", ncol=1)
        + scale_x_continuous(
            trans="log2",
            breaks=log_breaks,
            minor_breaks=[],
            labels=plain_numbers,
            expand=(0, 0),
        )
        + scale_y_continuous(
            trans="log2",
            breaks=log_breaks,
            minor_breaks=[],
            labels=plain_numbers,
            expand=(0, 0),
        )
        + scale_color_gradientn(
            VIRIDIS, trans="log10", breaks=ERROR_BREAKS, name="gradient error"
        )
        + scale_shape_manual(SHAPES)
        + labs(x=f"{x_title} (log scale)", y="Step peak [MiB] (log scale)", shape="")
        + figure_style(0.9 + PANEL_HEIGHT * frame["place"].nunique())
        + theme(legend_title=element_text(size=8))
        + guides(color=guide_colorbar(), shape=guide_legend(title=""))
    )


def _with_ratios(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Add what stands on the x axis as `cost`, and say what it is."""
    eager = (frame["policy"] == "pyg") & (frame["technique"] == "eager")
    reference = frame[eager].drop_duplicates("place").set_index("place")["time"]
    if frame["place"].isin(reference.index).all():
        ratio = frame["time"] / frame["place"].astype(str).map(reference)
        return frame.assign(cost=ratio), "Time per epoch / PyG eager"
    return frame.assign(cost=frame["time"]), "Time per epoch [s]"


def _with_labels(panel: pd.DataFrame) -> pd.DataFrame:
    """Add where labels stand and lines to them end, and the lines' length in inches."""
    low, span = _range(panel)
    inches = np.array([WIDTH - _BESIDE_PANEL, PANEL_HEIGHT - _BESIDE_PANEL])
    points = (np.log2(panel[["cost", "peak"]].to_numpy()) - low) / span * inches
    widths = _LETTER_WIDTH * panel["label"].str.len().to_numpy(dtype=float)
    x, y = place_labels(
        points[:, 0], points[:, 1], widths, _LABEL_HEIGHT, (inches[0], inches[1])
    )
    centres = np.column_stack([x, y])
    half = np.column_stack([widths, np.full(len(widths), _LABEL_HEIGHT)]) / 2
    edges = np.clip(points, centres - half, centres + half)
    on_axes = [2 ** (place / inches * span + low) for place in (centres, edges)]
    return panel.assign(
        label_x=on_axes[0][:, 0],
        label_y=on_axes[0][:, 1],
        leader_x=on_axes[1][:, 0],
        leader_y=on_axes[1][:, 1],
        distance=np.linalg.norm(edges - points, axis=1),
    )


def _range(panel: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Lower end and length of both axes, in powers of 2, (2,) each."""
    values = np.log2(panel[["cost", "peak"]].to_numpy())
    low, high = values.min(axis=0), values.max(axis=0)
    margin = _MARGIN * np.maximum(high - low, 0.1)  # one point, or equal ones
    return low - margin, high - low + 2 * margin


def _corners(frame: pd.DataFrame) -> pd.DataFrame:
    """Two invisible points in each panel, between which its axes run."""
    corners = []
    for place, panel in frame.groupby("place", observed=True):
        low, span = _range(panel)
        ends = 2 ** np.array([low, low + span])
        corners.append(pd.DataFrame(ends, columns=["cost", "peak"]).assign(place=place))
    return _same_places(pd.concat(corners), frame)


def _fronts(frame: pd.DataFrame) -> pd.DataFrame:
    """Methods of each panel that none beats in both, by time, and the panel's edges."""
    fronts = []
    for place, panel in frame.groupby("place", observed=True):
        ordered = panel.sort_values(["cost", "peak"])
        least = ordered["peak"].cummin()
        front = ordered[ordered["peak"] <= least].drop_duplicates("peak")
        low, span = _range(panel)
        right, top = 2 ** (low + span)
        stairs = pd.DataFrame(
            {
                "cost": [front["cost"].iloc[0], *front["cost"], right],
                "peak": [top, *front["peak"], front["peak"].iloc[-1]],
            }
        )
        fronts.append(stairs.assign(place=place))
    return _same_places(pd.concat(fronts), frame)


def _same_places(part: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    places = pd.Categorical(part["place"], frame["place"].cat.categories)
    return part.assign(place=places)
