"""Tables: what the datasets say, to read (Markdown) and to compute with (CSV).

Each function takes datasets and returns a Table: ``values``, plain numbers with the
unit in every header, and ``shown``, the same as text for people. Rows keep the order in
which the configuration names them. *Not measured* is NaN in the numbers and said in
words.

Accuracy is compared *pairwise*: a method and FP32 that were trained from one seed share
their initial weights, so their difference is taken per seed. Its mean has a Student
interval; a difference exceeds the seed noise when the 95 % interval leaves out zero.

Memory is compared as a compression ratio, bytes of the reference over bytes kept: above
1 is better. The reference EXACT is one row per block with even boundaries, at the same
bits and projection ratio.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

MIB = 2**20  # bytes
CONFIDENCE = 0.95
NOT_MEASURED = "not measured"
ITSELF = "–"  # FP32 compared with FP32
LAW_NAMES = {
    "uniform": "uniform",
    "normal": "normal",
    "truncated_normal": "truncated normal",
    "clipped_normal": "clipped normal",
}
REDUCTIONS = ("predicted", "achieved", "best")
SHOWN_BLOCK_SIZES = (4, 8, 16, 32, 63, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Table:
    """One table, twice: numbers to compute with and text to read."""

    title: str
    note: str  # what the columns mean, one or two sentences
    values: pd.DataFrame
    shown: pd.DataFrame  # strings only


def accuracy_table(runs: xr.Dataset) -> Table:
    """Test accuracy of graph x model x method over seeds, compared with FP32."""
    columns = ["graph", "model", "method", "label", "policy", "seed"]
    columns += ["test_accuracy", "epoch_time"]
    frame = runs[columns].to_dataframe().reset_index(drop=True)
    rows = [
        _accuracy_row(group, _baseline(frame, group))
        for _, group in frame.groupby(["graph", "model", "method"], sort=False)
    ]
    values = pd.DataFrame(rows, columns=list(_ACCURACY_COLUMNS))
    shown = values[["graph", "model", "method"]].copy()
    shown["seeds"] = _text(values["seeds"], "{:.0f}")
    shown["test accuracy [%]"] = _text(
        values["test accuracy mean [%]"], "{:.2f}"
    ) + _text(values["test accuracy std [%]"], " ± {:.2f}", missing="")
    compared = values["exceeds seed noise"] != ITSELF
    gap = _text(values["difference to FP32 [points]"], "{:+.2f}")
    low = _text(values["interval low [points]"], "{:+.2f}")
    high = _text(values["interval high [points]"], "{:+.2f}")
    known = values["interval low [points]"].notna()
    interval = (low + " … " + high).where(known, NOT_MEASURED)
    shown["difference to FP32 [points]"] = gap.where(compared, ITSELF)
    shown["95 % interval [points]"] = interval.where(compared, ITSELF)
    shown["exceeds seed noise"] = values["exceeds seed noise"]
    shown["epochs/s"] = values["epochs/s"].map(_three_digits)
    return Table(
        "Accuracy",
        "Test accuracy at the epoch of best validation accuracy: mean ± standard"
        " deviation over seeds. Differences are paired by seed, in percentage points;"
        " they exceed the seed noise when the 95 % interval of their mean leaves out 0."
        " Epochs/s: median over seeds, while training.",
        values,
        shown,
    )


_ACCURACY_COLUMNS = (
    "graph",
    "model",
    "method",
    "seeds",
    "test accuracy mean [%]",
    "test accuracy std [%]",
    "paired seeds",
    "difference to FP32 [points]",
    "interval low [points]",
    "interval high [points]",
    "exceeds seed noise",
    "epochs/s",
)


def _accuracy_row(group: pd.DataFrame, baseline: pd.DataFrame) -> tuple[Any, ...]:
    accuracy = 100 * group["test_accuracy"].dropna()
    first = group.iloc[0]
    paired = group.merge(baseline, on="seed", suffixes=("", "_fp32"))
    gap = 100 * (paired["test_accuracy"] - paired["test_accuracy_fp32"])
    difference = gap.dropna().to_numpy(dtype=float)
    mean, low, high = paired_interval(difference)
    if first["policy"] == "full":
        exceeds = ITSELF
    elif np.isnan(low):
        exceeds = NOT_MEASURED
    else:
        exceeds = "yes" if low > 0 or high < 0 else "no"
    return (
        first["graph"],
        first["model"],
        first["label"],
        len(accuracy),
        accuracy.mean(),
        accuracy.std(ddof=1),
        len(difference),
        mean,
        low,
        high,
        exceeds,
        1 / group["epoch_time"].median(),
    )


def paired_interval(
    difference: np.ndarray,  # (num_pairs,)
) -> tuple[float, float, float]:
    """Return mean, lower and upper end of its Student interval at 95 % confidence.

    All NaN without pairs; with one pair the mean stands without an interval.

    >>> [round(end, 2) for end in paired_interval(np.array([1.0, 2.0, 3.0]))]
    [2.0, -0.48, 4.48]
    """
    if len(difference) == 0:
        return np.nan, np.nan, np.nan
    mean = float(difference.mean())
    if len(difference) == 1:
        return mean, np.nan, np.nan
    quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, len(difference) - 1)
    half = float(quantile * difference.std(ddof=1) / len(difference) ** 0.5)
    return mean, mean - half, mean + half


def memory_table(runs: xr.Dataset) -> Table:
    """Memory and speed of graph x model x method, as measured alone.

    Where a graph and model were trained but not measured alone, the numbers of the
    training runs stand in, and the column ``measured`` says so.
    """
    frame = memory_frame(runs)
    rows = []
    for _, place in frame.groupby(["graph", "model"], sort=False):
        fp32 = place[place["policy"] == "full"]
        fp32_speed = _median_speed(fp32)
        for _, row in place.iterrows():
            exact = _exact_reference(place, row)
            speeds = 1 / np.asarray(row["epoch_time"], dtype=float)
            speeds = speeds[np.isfinite(speeds)]
            median = float(np.median(speeds)) if len(speeds) else np.nan
            rows.append(
                (
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
                    speeds.min(initial=np.inf) if len(speeds) else np.nan,
                    speeds.max(initial=0.0) if len(speeds) else np.nan,
                    median / fp32_speed,
                )
            )
    values = pd.DataFrame(rows, columns=list(_MEMORY_COLUMNS))
    shown = values[["graph", "model", "method", "measured"]].copy()
    for column, form in _MEMORY_COLUMNS.items():
        if form == "MiB":
            shown[column] = values[column].map(_mebibytes)
        elif form:
            shown[column] = _text(values[column], form)
    shown["epochs/s (min … max)"] = [
        NOT_MEASURED
        if np.isnan(median)
        else f"{_three_digits(median)} ({_three_digits(low)} … {_three_digits(high)})"
        for median, low, high in zip(
            values["epochs/s median"],
            values["epochs/s min"],
            values["epochs/s max"],
            strict=True,
        )
    ]
    shown["speed / FP32"] = _text(values["speed / FP32"], "{:.2f}")
    return Table(
        "Memory and speed",
        "Saved: bytes kept for backward after the first forward pass, by the published"
        " definition (the loss side not counted). Ratios above 1 keep less than the"
        " reference. Step peak: the most a training step holds above model and data."
        " Epochs/s: median (least … most) of the repeats, or of the seeds where"
        " measured in training.",
        values,
        shown,
    )


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


def memory_frame(runs: xr.Dataset) -> pd.DataFrame:
    """One row per graph, model and method: bytes, and epoch times [s] as a list."""
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
        row["epoch_time"] = list(one["measured_epoch_time"].values)
        rows.append(row | {"measured": "alone"})
    alone = {(row["graph"], row["model"]) for row in rows}
    trained = runs[[*settings, *scalars, "epoch_time"]].to_dataframe()
    for (graph, model, _), group in trained.groupby(
        ["graph", "model", "method"], sort=False
    ):
        if (graph, model) not in alone:
            row = {name: group[name].iloc[0] for name in settings}
            row |= {name: group[name].mean() for name in scalars}
            row["epoch_time"] = list(group["epoch_time"])
            rows.append(row | {"measured": "in training"})
    columns = [*settings, *scalars, "epoch_time", "measured"]
    return pd.DataFrame(rows, columns=columns)


def distribution_table(distributions: Sequence[xr.Dataset]) -> Table:
    """How well each law describes the observed positions, and what its bins gain."""
    rows = []
    for dataset in distributions:
        spec = json.loads(dataset.attrs["spec"])
        for epoch in dataset["epoch"].values:
            for tensor in dataset["tensor"].values:
                for projected in dataset["projected"].values:
                    one = dataset.sel(epoch=epoch, tensor=tensor, projected=projected)
                    if bool(np.isfinite(one["jensen_shannon"].values).any()):
                        rows.append(_distribution_row(spec, one))
    values = pd.DataFrame(rows, columns=_distribution_columns())
    shown = values[["graph", "model", "layer", "tensor", "projected"]].copy()
    shown.insert(2, "epoch", _text(values["epoch"], "{:.0f}"))
    for law in LAW_NAMES.values():
        shown[f"JS {law} [bit]"] = _text(values[f"JS {law} [bit]"], "{:.4f}")
    shown["JS noise [bit]"] = _text(values["JS noise [bit]"], "{:.4f}")
    for law in LAW_NAMES.values():
        shown[f"KS {law}"] = _text(values[f"KS {law}"], "{:.3f}")
    for kind in REDUCTIONS:
        column = f"variance reduction {kind} [%]"
        shown[column] = _text(values[column], "{:.2f}")
    return Table(
        "Distributions",
        "Observed positions of compressed activations against four laws:"
        " Jensen–Shannon divergence (JS, in bits; noise: what a sample of this size has"
        " from its own law) and Kolmogorov–Smirnov distance (KS); smaller is closer."
        " Variance reduction: rounding variance that the variance-minimised boundaries"
        " save against even ones, as the clipped normal predicts, as achieved on the"
        " observed values, and the best that any boundaries could do; negative means"
        " harm.",
        values,
        shown,
    )


def _distribution_columns() -> list[str]:
    columns = ["graph", "model", "epoch", "layer", "tensor", "projected"]
    columns += [f"JS {law} [bit]" for law in LAW_NAMES.values()]
    columns += [f"KS {law}" for law in LAW_NAMES.values()]
    columns += [f"KS p-value {law}" for law in LAW_NAMES.values()]
    columns += ["JS noise [bit]"]
    return columns + [f"variance reduction {kind} [%]" for kind in REDUCTIONS]


def _distribution_row(spec: dict[str, Any], one: xr.Dataset) -> tuple[Any, ...]:
    layer, _, tensor = str(one["tensor"].item()).partition(".")
    place = (spec["graph"], spec["model"]["name"], int(one["epoch"].item()))
    projected = "yes" if int(one["projected"].item()) else "no"
    fits = [
        one[name].sel(law=law).item()
        for name in ("jensen_shannon", "kolmogorov_smirnov", "ks_p_value")
        for law in LAW_NAMES
    ]
    fits.append(one["jensen_shannon_noise"].item())
    reductions = [100 * one[f"variance_reduction_{kind}"].item() for kind in REDUCTIONS]
    return *place, layer, tensor.replace("_", " "), projected, *fits, *reductions


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
        {column: _text(values[column], form) for column, form in forms.items()}
    )
    return Table(
        "Boundaries",
        "Boundaries that minimise the rounding variance of a clipped normal in blocks"
        " of d values. α: first inner boundary, in units of an even bin. One bit has no"
        " inner boundary.",
        values,
        shown,
    )


def to_markdown(table: Table) -> str:
    """Return the table as a Markdown page: title, note, and rows."""
    header = list(table.shown.columns)
    lines = [f"# {table.title}", "", table.note, ""]
    lines.append(_markdown_row(header))
    numeric = [_is_number_column(table, column) for column in header]
    lines.append(_markdown_row(["---:" if right else "---" for right in numeric]))
    lines += [_markdown_row(row) for row in table.shown.itertuples(index=False)]
    if table.shown.empty:
        lines += ["", f"({NOT_MEASURED} in this configuration)"]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Return the numbers as CSV, six significant digits, missing ones said in words."""
    return table.values.to_csv(
        index=False, float_format="%.6g", na_rep=NOT_MEASURED, lineterminator="\n"
    )


def _is_number_column(table: Table, column: str) -> bool:
    return column not in _TEXT_COLUMNS


_TEXT_COLUMNS = {
    "graph",
    "model",
    "method",
    "measured",
    "layer",
    "tensor",
    "projected",
    "exceeds seed noise",
}


def _markdown_row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _text(values: pd.Series, form: str, missing: str = NOT_MEASURED) -> pd.Series:
    return values.map(lambda value: missing if pd.isna(value) else form.format(value))


def _mebibytes(value: float) -> str:
    """Return two decimals, as published; of less than 10 MiB, four digits."""
    if np.isnan(value):
        return NOT_MEASURED
    return f"{value:.2f}" if value >= 10 or value == 0 else f"{value:#.4g}"


def _three_digits(value: float) -> str:
    """Return a positive number with three digits, never as a power of 10."""
    if not np.isfinite(value):
        return NOT_MEASURED
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _baseline(frame: pd.DataFrame, group: pd.DataFrame) -> pd.DataFrame:
    """Return seed and test accuracy of FP32 on the group's graph and model."""
    first = group.iloc[0]
    same_place = (frame["graph"] == first["graph"]) & (frame["model"] == first["model"])
    fp32 = frame[same_place & (frame["policy"] == "full")]
    return fp32[["seed", "test_accuracy"]]


def _exact_reference(place: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    """Return EXACT at the bits and projection ratio of row; for FP32, the first one."""
    exact = place[
        (place["policy"] == "exact")
        & (place["rows_per_block"] == 1)
        & (place["boundaries"] == "even")
    ]
    if row["policy"] == "full":
        return exact
    same_bits = exact["bits"] == row["bits"]
    return exact[same_bits & (exact["projection_ratio"] == row["projection_ratio"])]


def _median_speed(rows: pd.DataFrame) -> float:
    times = [time for row in rows["epoch_time"] for time in row if np.isfinite(time)]
    return float(np.median(1 / np.asarray(times))) if times else np.nan


def _first(rows: pd.DataFrame, column: str) -> float:
    return float(rows[column].iloc[0]) if len(rows) else np.nan
