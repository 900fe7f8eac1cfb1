"""Settings of activation compression: what was chosen, what it keeps and reaches.

Memory in MiB. Differences to FP32 are paired by seed, in percentage points.
"""

import json
from typing import Any

import pandas as pd
import xarray as xr

from pipeline_src.report.tables.accuracy import paired_interval
from pipeline_src.report.tables.measured import MIB, without_prefixes
from pipeline_src.report.tables.table import (
    NUMBER_MISSING,
    Table,
    interval_column,
    mebibytes,
    text_column,
)

FP32 = "FP32"
_PLACES = ["graph", "model"]
_COLUMNS = (
    "graph",
    "model",
    "method",
    "setting",
    "saved_mib",
    "saved_ratio",
    "peak_mib",
    "resident_mib",
    "test_accuracy",
    "test_accuracy_std",
    "difference",
    "difference_low",
    "difference_high",
    "seeds",
)


def setting_table(settings: xr.Dataset) -> Table:
    """Test accuracy and the three memories of each method on fresh seeds.

    Args:
        settings: as collecting.settings.collect_settings makes it.
    """
    names = ["test_accuracy", "saved_memory", "peak_memory", "resident_memory"]
    places = [f"measurement_{name}" for name in _PLACES]
    columns = [f"measured_{name}" for name in names]
    frame = settings[[*columns, *places, "method", "setting", "seed"]].to_dataframe()
    frame = without_prefixes(frame.reset_index(drop=True))
    rows = [
        _setting_row(group, place[place["method"] == FP32])
        for _, place in frame.groupby(_PLACES, sort=False)
        for _, group in place.groupby("method", sort=False)
    ]
    values = pd.DataFrame(rows, columns=list(_COLUMNS))
    shown = values[[*_PLACES, "method", "setting"]].copy()
    shown["saved [MiB]"] = values["saved_mib"].map(mebibytes)
    shown["FP32 / saved"] = text_column(values["saved_ratio"], "{:.1f}")
    shown["step peak [MiB]"] = values["peak_mib"].map(mebibytes)
    shown["resident [MiB]"] = values["resident_mib"].map(mebibytes)
    shown["test accuracy [%]"] = text_column(
        values["test_accuracy"], "{:.2f}"
    ) + text_column(values["test_accuracy_std"], " ± {:.2f}", missing="")
    compared = values["method"] != FP32
    gap = text_column(values["difference"], "{:+.2f}")
    interval = interval_column(values["difference_low"], values["difference_high"])
    shown["difference to FP32 [points]"] = gap.where(compared, "–")
    shown["95 % interval [points]"] = interval.where(compared, "–")
    shown["seeds"] = text_column(values["seeds"], "{:.0f}")
    return Table(
        "Selected settings",
        "What hidden layers keep for backward, on seeds that selected nothing. ABS:"
        " selected on validation nodes with other seeds, within the drop of accuracy or"
        " the memory that its name gives. A setting: policy, bits of each hidden layer,"
        " projection ratio, rows that share a zero point and a scale. Saved: bytes kept"
        " for backward; step peak: the most a training step holds above model and data,"
        " which are resident. Test accuracy: mean ± standard deviation over seeds;"
        " differences are paired by seed.",
        values,
        shown,
        missing=NUMBER_MISSING,
    )


def setting_search_table(settings: xr.Dataset) -> Table:
    """The best that each strategy found, for each question."""
    names = ["strategy", "aim", "evaluations", "memory", "accuracy", "method"]
    names += [*_PLACES, "objective", "baseline", "full_memory", "max_drop"]
    names += ["max_memory"]
    columns = [f"answer_{name}" for name in names]
    frame = settings[columns].to_dataframe().reset_index(drop=True)
    frame = frame.rename(columns=lambda name: name.removeprefix("answer_"))
    values = frame[[*_PLACES, "objective", "aim", "strategy", "evaluations"]].copy()
    values["memory_mib"] = frame["memory"] / MIB
    values["memory_ratio"] = frame["full_memory"] / frame["memory"]
    values["validation_accuracy"] = 100 * frame["accuracy"]
    values["validation_accuracy_fp32"] = 100 * frame["baseline"]
    values["setting"] = frame["method"].map(_label)
    shown = values[_PLACES].copy()
    shown["within"] = frame.apply(_limit, axis=1)
    shown["strategy"] = values["strategy"].replace({"surrogate": "ABS"})
    shown["evaluations"] = text_column(values["evaluations"], "{:.0f}")
    shown["memory [MiB]"] = values["memory_mib"].map(mebibytes)
    shown["FP32 / memory"] = text_column(values["memory_ratio"], "{:.1f}")
    accuracy = values["validation_accuracy"]
    shown["validation accuracy [%]"] = text_column(accuracy, "{:.2f}", "none found")
    baseline = values["validation_accuracy_fp32"]
    shown["FP32 [%]"] = text_column(baseline, "{:.2f}")
    shown["setting"] = values["setting"]
    return Table(
        "Search for settings",
        "The least memory within a drop of validation accuracy, or the greatest"
        " validation accuracy within a memory, of what each strategy measured; mean"
        " over the selection seeds. Memory: bytes kept for backward or the step peak,"
        " as was asked. ABS fits regression trees to what it measured; random and"
        " uniform settings are those of the same space.",
        values,
        shown,
        missing=NUMBER_MISSING,
    )


def _setting_row(group: pd.DataFrame, full: pd.DataFrame) -> tuple[Any, ...]:
    first = group.iloc[0]
    accuracy = 100 * group["test_accuracy"]
    paired = group.merge(full, on="seed", suffixes=("", "_fp32"))
    gap = 100 * (paired["test_accuracy"] - paired["test_accuracy_fp32"])
    return (
        *(first[name] for name in (*_PLACES, "method", "setting")),
        group["saved_memory"].mean() / MIB,
        full["saved_memory"].mean() / group["saved_memory"].mean(),
        group["peak_memory"].mean() / MIB,
        group["resident_memory"].mean() / MIB,
        accuracy.mean(),
        accuracy.std(ddof=1),
        *paired_interval(gap.to_numpy(dtype=float)),
        len(group),
    )


def _label(text: str) -> str:
    return json.loads(text)["label"] if text else ""


def _limit(row: pd.Series) -> str:
    if row["aim"] == "max_drop":
        return f"{100 * row['max_drop']:.4g} points"
    return f"{row['max_memory'] / MIB:.4g} MiB"
