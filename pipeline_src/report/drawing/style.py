"""What all figures look like.

Colours are those of Okabe and Ito, told apart by every common kind of colour vision;
shape or line type repeats what the colour says, so a grey print loses nothing. What a
configuration did not measure gives a figure that says so instead of an error.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd
from plotnine import (
    annotate,
    element_blank,
    element_line,
    element_rect,
    element_text,
    ggplot,
    guide_legend,
    guides,
    scale_color_manual,
    scale_fill_manual,
    scale_linetype_manual,
    scale_shape_manual,
    theme,
    theme_bw,
    theme_void,
    xlim,
    ylim,
)

# First digits of ticks on a log axis, from coarse to fine.
_TICK_DIGITS = (
    (1,),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
    (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7, 2, 2.5, 3, 4, 5, 6, 7, 8, 9, 9.5),
)
WIDTH = 7.0  # inches; fits a printed page
# Okabe & Ito 2008; yellow left out, it is too faint on white; black is FP32's.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "8", "d", "*")
LINETYPES = ("solid", "dashed", "dashdot", "dotted")


def figure_style(height: float) -> list:
    """Return the theme and legend of a figure of that height in inches."""
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


def not_measured(title: str) -> ggplot:
    """Return a figure that says in words what it cannot show."""
    text = f"{title}: not measured in this configuration"
    return (
        ggplot()
        + annotate("text", x=0, y=0, label=text, size=11)
        + xlim(-1, 1)
        + ylim(-1, 1)
        + theme_void()
        + theme(figure_size=(WIDTH, 1.5))
    )


def method_scales(
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


def log_breaks(limits: tuple[float, float]) -> list[float]:
    """The coarsest ticks of a log axis of which at least three are within the limits.

    >>> log_breaks((0.8, 2.5)), log_breaks((0.4, 30.0))
    ([1.0, 1.5, 2.0], [0.5, 1.0, 2.0, 5.0, 10.0, 20.0])
    """
    decades = range(math.floor(math.log10(limits[0])), math.ceil(math.log10(limits[1])))
    within: list[float] = []
    for digits in _TICK_DIGITS:
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        within = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
        if len(within) >= 3:
            break
    return within


def plain_numbers(breaks: Sequence[Any]) -> list[str]:
    """Return labels of an axis, without powers of 10 or trailing zeros."""
    return [f"{value:.6g}" for value in breaks]


def columns(panels: pd.Series) -> int:
    """Return how many panels stand side by side."""
    return min(2, panels.nunique())


def wrapped_height(panels: pd.Series) -> float:
    """Inches for panels two in a row, with axis and legend."""
    return 1.2 + 2.1 * -(-panels.nunique() // 2)


def grid_height(rows: pd.Series) -> float:
    """Inches for a row of panels each, with axis and legend."""
    return 1.2 + 1.35 * rows.nunique()
