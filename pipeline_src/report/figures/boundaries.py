"""Where solved boundaries lie, and what they save if their law holds."""

import numpy as np
import xarray as xr
from plotnine import (
    aes,
    facet_wrap,
    geom_line,
    ggplot,
    labs,
    scale_x_log10,
    scale_y_continuous,
)

from pipeline_src.report.drawing.frames import ordered
from pipeline_src.report.drawing.style import (
    figure_style,
    method_scales,
    not_measured,
    plain_numbers,
    wrapped_height,
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
        return not_measured("Boundaries")
    # The edges of 8 bits move twenty times as many bins as those of 2 bits.
    is_alpha = frame["quantity"] == "alpha"
    alpha = "First inner boundary α* at " + frame["bits"].astype(str) + " bits [bin]"
    frame["quantity"] = ordered(alpha.where(is_alpha, "Variance reduction [%]"))
    frame["bits"] = ordered([f"{bits} bits" for bits in frame["bits"]])
    return (
        ggplot(frame, aes("block_size", "value", color="bits", linetype="bits"))
        + geom_line(size=0.8)
        + facet_wrap("quantity", scales="free_y", ncol=2)
        + scale_x_log10(breaks=[4, 16, 64, 256, 1024, 4096], labels=plain_numbers)
        + scale_y_continuous(labels=plain_numbers)
        + method_scales(frame["bits"], "color", "linetype")
        + labs(x="Block size d [values], log scale", y="", color="", linetype="")
        + figure_style(wrapped_height(frame["quantity"]))
    )
