"""What each idea of the lean layout brings: lean with and without it.

A variant is compared with the full layout of the same graph, model, code widths, block
size and boundaries. Differences are variant less full: what the idea saves. Methods
that are not lean, and full layouts without a variant, have no row.
"""

import xarray as xr

from pipeline_src.report.tables.measured import measured_frame
from pipeline_src.report.tables.table import (
    NUMBER_MISSING,
    Table,
    mebibytes,
    text_column,
    three_digits,
)

NOTHING = "nothing"  # is left out of the full layout
# What a variant shares with its full layout; copies that it keeps may be projected.
_SAME = ["graph", "model", "bits", "layer_bits", "rows_per_block", "boundaries"]
_COMPARED = ["saved_mib", "peak_mib", "epoch_time_s", "gradient_error"]
_COLUMNS = ["graph", "model", "method", "without", *_COMPARED]
_COLUMNS += ["saved_difference_mib", "peak_difference_mib"]
_COLUMNS += ["epoch_time_ratio", "gradient_error_ratio"]


def ablation_table(runs: xr.Dataset) -> Table:
    """Each variant after its full layout."""
    frame = measured_frame(runs)
    frame = frame[frame["policy"] == "lean"].drop_duplicates(
        [*_SAME, "without", "projection_ratio"]
    )
    full = frame[frame["without"] == ""].set_index(_SAME)[_COMPARED]
    frame = frame.join(full.add_suffix("_full"), on=_SAME)
    groups = frame.groupby(_SAME, sort=False)["without"]
    frame = frame[groups.transform("nunique") > 1]
    for quantity in ("saved", "peak"):
        difference = frame[f"{quantity}_mib"] - frame[f"{quantity}_mib_full"]
        frame[f"{quantity}_difference_mib"] = difference
    frame["epoch_time_ratio"] = frame["epoch_time_s"] / frame["epoch_time_s_full"]
    error_ratio = frame["gradient_error"] / frame["gradient_error_full"]
    frame["gradient_error_ratio"] = error_ratio
    ideas = frame["without"].str.replace("_", " ").replace("", NOTHING)
    projected = frame["projection_ratio"] > 1
    ideas = ideas.where(~projected, ideas + ", its copy projected")
    values = frame.assign(method=frame["label"], without=ideas)[_COLUMNS]
    shown = values[["graph", "model", "method", "without"]].copy()
    shown["saved [MiB]"] = values["saved_mib"].map(mebibytes)
    shown["more saved [MiB]"] = text_column(values["saved_difference_mib"], "{:+.2f}")
    shown["step peak [MiB]"] = values["peak_mib"].map(mebibytes)
    shown["more peak [MiB]"] = text_column(values["peak_difference_mib"], "{:+.2f}")
    shown["time per epoch [s]"] = values["epoch_time_s"].map(three_digits)
    shown["time / lean"] = text_column(values["epoch_time_ratio"], "{:.2f}")
    shown["gradient error"] = text_column(values["gradient_error"], "{:.1e}")
    shown["error / lean"] = text_column(values["gradient_error_ratio"], "{:.2f}")
    return Table(
        "Ablation",
        "The lean layout with one of its ideas switched off, against the full layout"
        " (without nothing): what the idea brings. More: bytes that the variant keeps"
        " or holds above the full layout. Ratios above 1 are slower or less accurate.",
        values.reset_index(drop=True),
        shown,
        NUMBER_MISSING,
    )
