"""What each idea of the lean layout brings: a row for each that is switched off."""

import pandas as pd
import xarray as xr
from plotnine import (
    aes,
    facet_grid,
    geom_point,
    geom_text,
    geom_vline,
    ggplot,
    labs,
    scale_x_continuous,
    scale_y_discrete,
)

from pipeline_src.report.drawing.frames import ordered
from pipeline_src.report.drawing.measured import measured_alone
from pipeline_src.report.drawing.style import (
    COLORS,
    figure_style,
    log_breaks,
    not_measured,
    plain_numbers,
)

# column of the frame: (name of its panel, how its values are written)
QUANTITIES = {
    "saved": ("kept for backward", "{:.4g} MiB"),
    "peak": ("step peak", "{:.4g} MiB"),
    "time": ("time per epoch", "{:.3g} s"),
    "error": ("gradient error", "{:.1e}"),
}
# What a variant shares with its full layout; copies that it keeps may be projected.
SAME = ["graph", "model", "bits", "layer_bits", "rows_per_block", "boundaries"]
EVERYTHING = "every idea"
ROW_HEIGHT = 0.24  # inches


def plot_ablation(runs: xr.Dataset) -> ggplot:
    """Bytes, peak, time and error without each idea, as multiples of the full layout.

    Each point is labelled with its value; the line at 1 is the full layout.
    """
    frame = measured_alone(runs)
    frame = frame[frame["policy"] == "lean"].drop_duplicates([*SAME, "without"])
    quantities = list(QUANTITIES)
    full = frame[frame["without"] == ""].set_index(SAME)
    frame = frame.join(full[[*quantities, "label"]].add_suffix("_full"), on=SAME)
    frame = frame.dropna(subset=["label_full"])
    variants = frame.groupby(SAME, sort=False)["without"].transform("nunique")
    frame = frame[variants > 1]
    parts = [_part(frame, quantity) for quantity in quantities]
    tidy = pd.concat(parts, ignore_index=True).dropna(subset=["ratio"])
    if tidy.empty:
        return not_measured("What each idea brings")
    for name in ("layout", "quantity", "idea"):
        tidy[name] = ordered(tidy[name])
    rows = tidy["idea"].nunique() * tidy["layout"].nunique()
    return (
        ggplot(tidy, aes("ratio", "idea"))
        + geom_vline(xintercept=1, color="#888888", size=0.4)
        + geom_point(size=2, color=COLORS[0])
        + geom_text(aes(label="value"), size=6, ha="left")
        + facet_grid("layout", "quantity", scales="free_x")
        + scale_x_continuous(
            trans="log2",
            breaks=log_breaks,
            minor_breaks=[],
            labels=plain_numbers,
            expand=(0.1, 0, 0.9, 0),  # room for text to the right
        )
        + scale_y_discrete(limits=list(tidy["idea"].cat.categories)[::-1])
        + labs(x="Multiple of the full layout (log scale)", y="")
        + figure_style(0.9 + ROW_HEIGHT * rows)
    )


def _part(frame: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """One quantity of all variants: multiple of the full layout, and value as text."""
    name, form = QUANTITIES[quantity]
    ideas = "without " + frame["without"].str.replace("_", " ")
    return pd.DataFrame(
        {
            "layout": frame["graph"]
            + ", "
            + frame["model"]
            + "\n"
            + frame["label_full"],
            "idea": ideas.where(frame["without"] != "", EVERYTHING),
            "quantity": name,
            "ratio": frame[quantity] / frame[f"{quantity}_full"],
            "value": [f"  {form.format(value)}" for value in frame[quantity]],
        }
    )
