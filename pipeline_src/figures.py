"""Figures: datasets in, ggplots out. No files, no torch; variables are read by name.

One function per figure; plot_figure picks it by the figure's name, render turns a
ggplot into the bytes of a PNG or SVG, the same bytes every time.

Colours are those of Okabe and Ito, told apart by every common kind of colour vision;
shape or line type repeats what the colour says, so a grey print loses nothing. What a
configuration did not measure gives a figure that says so instead of an error.
"""

import io
import itertools
import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from plotnine import (
    aes,
    annotate,
    element_blank,
    element_line,
    element_rect,
    element_text,
    facet_grid,
    facet_wrap,
    geom_abline,
    geom_col,
    geom_errorbar,
    geom_hline,
    geom_line,
    geom_point,
    geom_rect,
    geom_ribbon,
    ggplot,
    guide_legend,
    guides,
    labs,
    scale_color_manual,
    scale_fill_manual,
    scale_linetype_manual,
    scale_shape_manual,
    scale_x_continuous,
    scale_x_log10,
    scale_y_continuous,
    scale_y_sqrt,
    theme,
    theme_bw,
    theme_void,
    xlim,
    ylim,
)

FIGURES = (
    "accuracy_memory",
    "memory_block_size",
    "epoch_time_block_size",
    "position_histograms",
    "quantile_quantile",
    "boundaries",
    "training_curves",
)
MIB = 2**20  # bytes
WIDTH = 7.0  # inches; fits a printed page
RESOLUTION = 200  # dots per inch of a PNG
# Okabe & Ito 2008; yellow left out, it is too faint on white; black is FP32's.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "8", "d", "*")
LINETYPES = ("solid", "dashed", "dashdot", "dotted")
LAW_NAMES = {
    "uniform": "uniform",
    "normal": "normal",
    "truncated_normal": "truncated normal",
    "clipped_normal": "clipped normal",
}
LAW_COLORS = ("#E69F00", "#0072B2", "#009E73", "#D55E00")
LAW_LINETYPES = ("dotted", "dashed", "dashdot", "solid")
END_GAP = 0.1  # bin units from the interior to the bar of an end mass
MIN_GAP = 0.02  # of the range of an axis; markers nearer than that hide each other
SIDE_STEP = 1.12  # factor between markers of equal block size, on a log axis


def plot_figure(
    name: str,
    runs: xr.Dataset,
    distributions: Sequence[xr.Dataset],
    boundaries: xr.Dataset,
) -> ggplot:
    """Return the figure of that name.

    Raises:
        ValueError: if there is no such figure.
    """
    match name:
        case "accuracy_memory":
            return plot_accuracy_memory(runs)
        case "memory_block_size":
            return plot_memory_block_size(runs)
        case "epoch_time_block_size":
            return plot_epoch_time_block_size(runs)
        case "position_histograms":
            return plot_position_histograms(distributions)
        case "quantile_quantile":
            return plot_quantile_quantile(distributions)
        case "boundaries":
            return plot_boundaries(boundaries)
        case "training_curves":
            return plot_training_curves(runs)
    raise ValueError(f"figure must be one of {FIGURES}, got {name!r}")


def render(plot: ggplot, file_format: str) -> bytes:
    """Return the figure as a file's content; equal figures give equal bytes.

    Raises:
        ValueError: if file_format is neither "png" nor "svg".
    """
    if file_format not in ("png", "svg"):
        raise ValueError(f"file_format must be png or svg, got {file_format!r}")
    # Without a date and with a fixed salt for its identifiers, an SVG is reproducible.
    metadata = {"Date": None} if file_format == "svg" else {"Software": None}
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "figures"}):
        plot.save(
            buffer,
            format=file_format,
            dpi=RESOLUTION,
            verbose=False,
            limitsize=False,
            metadata=metadata,
        )
    return buffer.getvalue()


def plot_accuracy_memory(runs: xr.Dataset) -> ggplot:
    """Test accuracy against memory kept for backward: mean and std over seeds.

    FP32 keeps some thirty times more than the rest. On the same axis it would squeeze
    them into one spot, so it is a line with a band, its memory named in the strip.
    """
    frame = _tidy_runs(runs[["test_accuracy", "saved_memory"]])
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
    fp32, compressed = _split_fp32(points, "memory")
    if compressed.empty:
        return _not_measured("Accuracy against memory")
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
        + geom_errorbar(aes(ymin="low", ymax="high", color="method"), width=0, size=0.5)
        + geom_point(aes(color="method", shape="method"), size=2.4)
        + facet_wrap("place", scales="free", ncol=_columns(compressed["place"]))
        + scale_x_continuous(labels=_plain_numbers, expand=(0.08, 0))
        + _method_scales(compressed["method"], "color", "shape")
        + scale_linetype_manual(LINETYPES[1:])
        + labs(
            x="Memory kept for backward [MiB]",
            y="Test accuracy [%]",
            color="",
            shape="",
            linetype="",
        )
        + _style(_wrapped_height(compressed["place"]))
    )


def plot_memory_block_size(runs: xr.Dataset) -> ggplot:
    """Memory kept for backward against rows per block; FP32 is named in the strip."""
    frame = _by_block_size(runs, "saved_memory").dropna(subset=["value"])
    frame = (
        frame.groupby(_BLOCK_SIZE_KEYS, observed=True, sort=False)["value"]
        .mean()
        .div(MIB)
        .rename("memory")
        .reset_index()
    )
    _, frame = _split_fp32(frame, "memory")
    if frame.empty:
        return _not_measured("Memory against block size")
    return (
        ggplot(frame, aes("rows_per_block", "memory", color="family", shape="family"))
        + geom_line(size=0.6)
        + geom_point(size=2.2)
        + facet_wrap("place", scales="free_y", ncol=_columns(frame["place"]))
        + _block_size_scale(frame)
        + _method_scales(frame["family"], "color", "shape")
        + labs(
            x="Rows per block, G/R (log scale)",
            y="Memory kept for backward [MiB]",
            color="",
            shape="",
        )
        + _style(_wrapped_height(frame["place"]))
    )


def plot_epoch_time_block_size(runs: xr.Dataset) -> ggplot:
    """Epoch time against rows per block: every repeat, the median, and that of FP32."""
    frame = _by_block_size(runs, "epoch_time").dropna(subset=["value"])
    if frame[frame["policy"] != "full"].empty:
        return _not_measured("Epoch time against block size")
    medians = (
        frame.groupby(_BLOCK_SIZE_KEYS, observed=True, sort=False)["value"]
        .median()
        .reset_index()
    )
    fp32 = medians[medians["policy"] == "full"]
    frame, medians = (
        _without_fp32(part[part["policy"] != "full"]) for part in (frame, medians)
    )
    return (
        ggplot(medians, aes("rows_per_block", "value", color="family", shape="family"))
        + geom_hline(
            aes(yintercept="value", linetype="method"), fp32, color="black", size=0.6
        )
        + geom_point(data=frame, size=1.2, alpha=0.4)
        + geom_line(size=0.6)
        + geom_point(size=2.4)
        + facet_wrap("place", scales="free_y", ncol=_columns(frame["place"]))
        + _block_size_scale(frame)
        + _method_scales(frame["family"], "color", "shape")
        + scale_linetype_manual(LINETYPES[1:])
        + scale_y_continuous(labels=_plain_numbers, expand=(0.1, 0))
        + labs(
            x="Rows per block, G/R (log scale)",
            y="Time per epoch [s]",
            color="",
            shape="",
            linetype="",
        )
        + _style(_wrapped_height(frame["place"]))
    )


def plot_position_histograms(distributions: Sequence[xr.Dataset]) -> ggplot:
    """Observed positions of the last epoch with the fitted laws, end masses apart."""
    if not distributions:
        return _not_measured("Positions of activations")
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
        + scale_y_sqrt(labels=_plain_numbers)
        + _law_scales()
        + labs(
            x="Position in the block [bin]; outside: share exactly at an end",
            y="Share of values [%] (square-root scale)",
            color="",
            linetype="",
            shape="",
        )
        + _style(_grid_height(observed["tensor"]))
    )


def plot_quantile_quantile(distributions: Sequence[xr.Dataset]) -> ggplot:
    """Observed quantiles of the last epoch against those of the fitted laws."""
    if not distributions:
        return _not_measured("Quantiles of positions")
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
        + _style(_grid_height(frame["tensor"]))
    )


def plot_boundaries(boundaries: xr.Dataset) -> ggplot:
    """First inner boundary and variance reduction against block size, per bits."""
    sizes = boundaries["block_size"].values
    # Four thousand sizes make no smoother a line than a hundred, but a far larger file.
    spread = np.geomspace(sizes[0], sizes[-1], 100)
    chosen = np.unique(np.abs(sizes[:, None] - spread).argmin(axis=0))
    table = boundaries[["alpha", "variance_reduction"]].isel(block_size=chosen)
    table["variance_reduction"] = 100 * table["variance_reduction"]
    frame = table.to_dataframe().reset_index()[
        ["bits", "block_size", "alpha", "variance_reduction"]
    ]
    frame = frame[frame["bits"] > 1]  # one bit has no inner boundary
    frame = frame.melt(["bits", "block_size"], var_name="quantity").dropna()
    if frame.empty:
        return _not_measured("Boundaries")
    # The edges of 8 bits move twenty times as many bins as those of 2 bits.
    is_alpha = frame["quantity"] == "alpha"
    alpha = "First inner boundary α* at " + frame["bits"].astype(str) + " bits [bin]"
    frame["quantity"] = _ordered(alpha.where(is_alpha, "Variance reduction [%]"))
    frame["bits"] = _ordered([f"{bits} bits" for bits in frame["bits"]])
    return (
        ggplot(frame, aes("block_size", "value", color="bits", linetype="bits"))
        + geom_line(size=0.8)
        + facet_wrap("quantity", scales="free_y", ncol=2)
        + scale_x_log10(breaks=[4, 16, 64, 256, 1024, 4096], labels=_plain_numbers)
        + scale_y_continuous(labels=_plain_numbers)
        + _method_scales(frame["bits"], "color", "linetype")
        + labs(x="Block size d [values], log scale", y="", color="", linetype="")
        + _style(_wrapped_height(frame["quantity"]))
    )


def plot_training_curves(runs: xr.Dataset) -> ggplot:
    """Training loss and validation accuracy per epoch: mean and std over seeds."""
    names = {
        "loss_curve": "Training loss",
        "validation_accuracy_curve": "Validation accuracy [%]",
    }
    frame = _tidy_runs(runs[list(names)])
    frame["validation_accuracy_curve"] *= 100
    fp32 = set(frame.loc[frame["policy"] == "full", "label"])
    frame = frame.melt(
        ["place", "method", "seed", "epoch"], list(names), var_name="quantity"
    ).dropna(subset=["value"])
    if frame.empty:
        return _not_measured("Training curves")
    frame["quantity"] = frame["quantity"].map(names)
    curves = (
        frame.groupby(["place", "quantity", "method", "epoch"], observed=True)["value"]
        .agg(["mean", "std"])
        .reset_index()
    )
    curves["panel"] = _ordered(
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
        + _method_scales(curves["method"], "color", "fill", "linetype", fp32=fp32)
        + labs(x="Epoch", y="", color="", fill="", linetype="")
        + _style(_wrapped_height(curves["panel"]))
    )


_BLOCK_SIZE_KEYS = ["place", "family", "method", "policy", "rows_per_block"]


def _tidy_runs(runs: xr.Dataset) -> pd.DataFrame:
    """One row per entry; place and method as categories in order of appearance."""
    frame = runs.to_dataframe().reset_index()
    frame["place"] = _places(frame["graph"], frame["model"])
    frame["method"] = _ordered(frame["label"])
    return frame


def _by_block_size(runs: xr.Dataset, quantity: str) -> pd.DataFrame:
    """Values of a quantity with their method's settings, one row per seed or repeat.

    Measured alone where that was done, else what the training runs noted.
    """
    settings = ["graph", "model", "label", "policy", "bits", "projection_ratio"]
    settings += ["rows_per_block", "boundaries"]
    measured = (
        runs[[f"measured_{quantity}", *(f"measurement_{name}" for name in settings)]]
        .to_dataframe()
        .reset_index()
        .rename(columns=lambda name: name.removeprefix("measurement_"))
        .rename(columns={f"measured_{quantity}": "value"})
    )
    trained = runs[[quantity, *settings]].to_dataframe().reset_index()
    trained = trained.rename(columns={quantity: "value"})
    alone = set(zip(measured["graph"], measured["model"], strict=True))
    places = list(zip(trained["graph"], trained["model"], strict=True))
    trained = trained[[place not in alone for place in places]]
    frame = pd.concat([part for part in (measured, trained) if len(part)] or [measured])
    frame["place"] = _places(frame["graph"], frame["model"])
    frame["method"] = frame["label"]
    kinds = {"even": "even", "clipped_normal": "variance-minimised"}
    frame["family"] = _ordered(
        [
            f"INT{bits}, D/R = {ratio}, {kinds[kind]} boundaries"
            for bits, ratio, kind in zip(
                frame["bits"],
                frame["projection_ratio"],
                frame["boundaries"],
                strict=True,
            )
        ]
    )
    return frame


def _split_fp32(frame: pd.DataFrame, memory: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part FP32 from compressed methods; its memory goes into the name of the place."""
    is_fp32 = frame["policy"] == "full"
    known = frame[is_fp32].set_index("place")[memory]
    names = {
        place: f"{place} (FP32: {known[place]:.2f} MiB)" if place in known else place
        for place in frame["place"].cat.categories
    }
    frame = frame.assign(place=frame["place"].cat.rename_categories(names))
    fp32 = frame[is_fp32].assign(method=frame["method"][is_fp32].astype(str))
    return fp32, _without_fp32(frame[~is_fp32])


def _without_fp32(frame: pd.DataFrame) -> pd.DataFrame:
    """Forget FP32's categories; set families that share a block size side by side."""
    frame = frame.copy()
    for name in ("place", "method", "family"):
        if name in frame and isinstance(frame[name].dtype, pd.CategoricalDtype):
            frame[name] = frame[name].cat.remove_unused_categories()
    if "family" in frame:
        frame["rows_per_block"] = frame["rows_per_block"] * (
            SIDE_STEP ** frame["family"].cat.codes.astype(float)
        )
    return frame


def _spread_out(memory: pd.Series) -> pd.Series:
    """Move points nearer than MIN_GAP of their range apart, so that all can be seen."""
    gap = MIN_GAP * (memory.max() - memory.min())
    moved = memory.sort_values(kind="stable")
    for left, right in itertools.pairwise(range(len(moved))):
        moved.iloc[right] = max(moved.iloc[right], moved.iloc[left] + gap)
    return moved.reindex(memory.index)


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
    frame["tensor"] = _ordered(frame["tensor"])
    return frame


def _places(graphs: Iterable[str], models: Iterable[str]) -> "pd.Categorical[str]":
    return _ordered(
        [f"{graph}, {model}" for graph, model in zip(graphs, models, strict=True)]
    )


def _ordered(texts: Iterable[str]) -> "pd.Categorical[str]":
    """Return the texts as categories in order of first appearance."""
    texts = list(texts)
    return pd.Categorical(texts, list(dict.fromkeys(texts)))


def _method_scales(
    methods: pd.Series, *aesthetics: str, fp32: Collection[str] = ()
) -> list:
    """One colour, shape and line type per category; FP32 is black and comes first."""
    categories = list(methods.cat.categories)
    place = {name: i for i, name in enumerate(c for c in categories if c not in fp32)}
    palettes = {
        "color": (scale_color_manual, COLORS, "#000000"),
        "fill": (scale_fill_manual, COLORS, "#000000"),
        "shape": (scale_shape_manual, SHAPES, "o"),
        "linetype": (scale_linetype_manual, LINETYPES, "solid"),
    }
    scales = []
    for aesthetic in aesthetics:
        scale, palette, for_fp32 = palettes[aesthetic]
        chosen = {
            name: palette[place[name] % len(palette)] if name in place else for_fp32
            for name in categories
        }
        scales.append(scale(chosen))
    return scales


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


def _block_size_scale(frame: pd.DataFrame) -> scale_x_continuous:
    breaks = sorted({2 ** round(np.log2(rows)) for rows in frame["rows_per_block"]})
    # Minor breaks are derived from two major ones; there may be only one.
    return scale_x_continuous(
        trans="log2", breaks=breaks, minor_breaks=[], labels=_plain_numbers
    )


def _plain_numbers(breaks: Sequence[Any]) -> list[str]:
    return [f"{value:.6g}" for value in breaks]


def _columns(panels: pd.Series) -> int:
    return min(2, panels.nunique())


def _wrapped_height(panels: pd.Series) -> float:
    """Inches for panels two in a row, with axis and legend."""
    return 1.2 + 2.1 * -(-panels.nunique() // 2)


def _grid_height(rows: pd.Series) -> float:
    return 1.2 + 1.35 * rows.nunique()


def _style(height: float) -> list:
    return [
        theme_bw(base_size=9),
        theme(
            figure_size=(WIDTH, height),
            legend_position="bottom",
            legend_title=element_blank(),
            legend_key=element_blank(),
            panel_grid_minor=element_blank(),
            panel_grid_major=element_line(color="#E5E5E5", size=0.4),
            strip_background=element_rect(fill="#F2F2F2", color="none"),
            strip_text=element_text(size=8),
            axis_title=element_text(size=9),
        ),
        guides(
            color=guide_legend(ncol=5),
            shape=guide_legend(ncol=5),
            fill=guide_legend(ncol=5),
            linetype=guide_legend(ncol=5),
        ),
    ]


def _not_measured(title: str) -> ggplot:
    text = f"{title}: not measured in this configuration"
    return (
        ggplot()
        + annotate("text", x=0, y=0, label=text, size=11)
        + xlim(-1, 1)
        + ylim(-1, 1)
        + theme_void()
        + theme(figure_size=(WIDTH, 1.5))
    )
