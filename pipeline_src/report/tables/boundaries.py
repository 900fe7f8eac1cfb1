"""Where solved boundaries lie, and what they save if their law holds."""

import pandas as pd
import xarray as xr

from pipeline_src.report.tables.table import Table, text_column

SHOWN_BLOCK_SIZES = (4, 8, 16, 32, 63, 64, 128, 256, 512, 1024, 2048, 4096)


def boundaries_table(boundaries: xr.Dataset) -> Table:
    """First inner boundary and variance reduction for selected block sizes."""
    sizes = [
        size for size in SHOWN_BLOCK_SIZES if size in boundaries["block_size"].values
    ]
    rows = []
    for bits in boundaries["bits"].values:
        if bits == 1:  # both boundaries are fixed
            continue
        for size in sizes:
            one = boundaries.sel(bits=bits, block_size=size)
            rows.append(
                (
                    int(bits),
                    size,
                    one["alpha"].item(),
                    one["rounding_variance"].item(),
                    one["rounding_variance_even"].item(),
                    100 * one["variance_reduction"].item(),
                )
            )
    forms = {
        "bits": "{:.0f}",
        "block size d": "{:.0f}",
        "α [bin]": "{:.4f}",
        "rounding variance [bin²]": "{:.5f}",
        "with even boundaries [bin²]": "{:.5f}",
        "variance reduction [%]": "{:.2f}",
    }
    values = pd.DataFrame(rows, columns=list(forms))
    shown = pd.DataFrame(
        {column: text_column(values[column], form) for column, form in forms.items()}
    )
    return Table(
        "Boundaries",
        "Boundaries that minimise the rounding variance of a clipped normal in blocks"
        " of d values. α: first inner boundary, in units of an even bin. One bit has no"
        " inner boundary.",
        values,
        shown,
    )
