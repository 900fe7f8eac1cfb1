"""Memory and speed of every method on a graph and model.

Memory is compared as a compression ratio, bytes of the reference over bytes kept: above
1 is better. The reference EXACT is one row per block with even boundaries, at the same
bits and projection ratio.

Bytes do not depend on what else the machine does, so those of training runs stand in
where nothing was measured alone, and bytes that methods keep on graphs too large to try
are counted from their shapes. Seconds do: training runs share the machine.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pipeline_src.report.tables.counted import counted_rows
from pipeline_src.report.tables.table import (
    NOT_MEASURED,
    Table,
    mebibytes,
    text_column,
    three_digits,
)
from pipeline_src.training.spec import RunSpec

MIB = 2**20  # bytes
# Header: format in `shown`; those without one are composed there.
_MEMORY_COLUMNS = {
    "graph": "",
    "model": "",
    "method": "",
    "measured": "",
    "saved [MiB]": "MiB",
    "FP32 / saved": "{:.2f}",
    "EXACT / saved": "{:.3f}",
    "saved with loss side [MiB]": "MiB",
    "step peak [MiB]": "MiB",
    "resident [MiB]": "MiB",
    "epochs/s median": "",
    "epochs/s min": "",
    "epochs/s max": "",
    "speed / FP32": "",
}
_SPEEDS = ("median", "min", "max")


def memory_table(
    runs: xr.Dataset,
    counted: Sequence[RunSpec] = (),
    labels: Mapping[str, str] | None = None,  # of methods whose bytes are counted
) -> Table:
    """Memory and speed of graph x model x method, as measured alone.

    Where a graph and model were trained but not measured alone, the bytes of the
    training runs stand in; those of `counted` follow from shapes alone. The column
    ``measured`` says which.
    """
    frame = _memory_frame(runs, counted_rows(counted, labels or {}))
    rows = [
        _memory_row(row, place)
        for _, place in frame.groupby(["graph", "model"], sort=False)
        for _, row in place.iterrows()
    ]
    values = pd.DataFrame(rows, columns=list(_MEMORY_COLUMNS))
    shown = values[["graph", "model", "method", "measured"]].copy()
    for column, form in _MEMORY_COLUMNS.items():
        if form == "MiB":
            shown[column] = values[column].map(mebibytes)
        elif form:
            shown[column] = text_column(values[column], form)
    median, low, high = (
        values[f"epochs/s {which}"].map(three_digits) for which in _SPEEDS
    )
    timed = values["epochs/s median"].notna()
    spread = median + " (" + low + " … " + high + ")"
    shown["epochs/s (min … max)"] = spread.where(timed, NOT_MEASURED)
    shown["speed / FP32"] = text_column(values["speed / FP32"], "{:.2f}")
    return Table(
        "Memory and speed",
        "Saved: bytes kept for backward after the first forward pass, by the published"
        " definition (the loss side not counted). Ratios above 1 keep less than the"
        " reference. Measured: alone, while training, or counted from shapes alone."
        " Step peak: the most a training step holds above model and data."
        " Epochs/s: median (least … most) of the repeats; measured alone only, since"
        " training runs share the machine.",
        values,
        shown,
    )


def _memory_frame(
    runs: xr.Dataset, counted: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """One row per graph, model and method: bytes, and epochs/s as an array."""
    settings = ["graph", "model", "method", "label", "policy", "bits"]
    settings += ["projection_ratio", "rows_per_block", "boundaries"]
    scalars = ["saved_memory", "saved_memory_with_loss", "peak_memory"]
    scalars += ["resident_memory"]
    rows: list[dict[str, Any]] = []
    for index in range(runs.sizes["measurement"]):
        one = runs.isel(measurement=index)
        row: dict[str, Any] = {
            name: one[f"measurement_{name}"].item() for name in settings
        }
        row |= {name: one[f"measured_{name}"].item() for name in scalars}
        speed = 1 / one["measured_epoch_time"].values
        rows.append(row | {"speed": speed[np.isfinite(speed)], "measured": "alone"})
    alone = {(row["graph"], row["model"]) for row in rows}
    trained = runs[[*settings, *scalars]].to_dataframe()
    for (graph, model, _), group in trained.groupby(
        ["graph", "model", "method"], sort=False
    ):
        if (graph, model) not in alone:
            row = {name: group[name].iloc[0] for name in settings}
            row |= {name: group[name].mean() for name in scalars}
            rows.append(row | {"speed": np.empty(0), "measured": "in training"})
    for counts in counted:
        rows.append({**counts, "speed": np.empty(0), "measured": "counted"})
    return pd.DataFrame(rows, columns=[*settings, *scalars, "speed", "measured"])


def _memory_row(row: pd.Series, place: pd.DataFrame) -> tuple[Any, ...]:
    """Return the row's values in the order of _MEMORY_COLUMNS.

    Args:
        row: of _memory_frame.
        place: the rows of its graph and model.
    """
    fp32 = place[place["policy"] == "full"]
    exact = _exact_reference(place, row)
    median, low, high = _speed_summary(row["speed"])
    fp32_median, _, _ = _speed_summary(fp32["speed"].iloc[0] if len(fp32) else [])
    return (
        row["graph"],
        row["model"],
        row["label"],
        row["measured"],
        row["saved_memory"] / MIB,
        _first(fp32, "saved_memory") / row["saved_memory"],
        _first(exact, "saved_memory") / row["saved_memory"],
        row["saved_memory_with_loss"] / MIB,
        row["peak_memory"] / MIB,
        row["resident_memory"] / MIB,
        median,
        low,
        high,
        median / fp32_median,
    )


def _speed_summary(speed: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the least and the most; NaN where nothing was timed."""
    if len(speed) == 0:
        return np.nan, np.nan, np.nan
    return float(np.median(speed)), min(speed), max(speed)


def _exact_reference(place: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    """Return EXACT at the bits and projection ratio of row, or at its bits alone.

    A method of another layout has no projection to match; FP32 takes the first one.
    """
    exact = place[
        (place["policy"] == "exact")
        & (place["rows_per_block"] == 1)
        & (place["boundaries"] == "even")
    ]
    if row["policy"] == "full":
        return exact
    exact = exact[exact["bits"] == row["bits"]]
    if row["policy"] != "exact":
        return exact
    return exact[exact["projection_ratio"] == row["projection_ratio"]]


def _first(rows: pd.DataFrame, column: str) -> float:
    return float(rows[column].iloc[0]) if len(rows) else np.nan
