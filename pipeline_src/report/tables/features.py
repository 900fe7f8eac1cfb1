"""Stored features in few bits: what was chosen, what it costs, how it was found.

Ratios are full precision over compressed, above 1 is better. Drops are full precision
minus compressed, in percentage points, paired by seed, so a gain is negative.
"""

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

FULL_BITS = 32
SELECTED = ("ABS tuned", "ABS")  # the first that was measured is the method's result
FLOAT32_DIGITS = 4  # of points, which shares in float32 have after the decimal point
_FEATURE_COLUMNS = (
    "graph",
    "model",
    "method",
    "average_bits",
    "nominal_ratio",
    "packed_mib",
    "packed_ratio",
    "csr_ratio",
    "accuracy_fp32",
    "accuracy",
    "drop",
    "drop_low",
    "drop_high",
    "seeds",
)
_SEARCH_COLUMNS = {
    "graph": "graph",
    "model": "model",
    "strategy": "strategy",
    "number": "evaluation",
    "accuracy": "accuracy",
    "memory": "packed_mib",
    "average_bits": "average_bits",
    "best_memory": "best_packed_mib",
    "best_ratio": "best_packed_ratio",
    "best_accuracy": "best_accuracy",
    "baseline": "accuracy_fp32",
}


def feature_tables(features: xr.Dataset) -> dict[str, Table]:
    """All tables of stored features, by the names of their files.

    Args:
        features: as collecting.features.collect_features makes it.
    """
    return {
        "selected_bits": selected_table(features),
        "sgquant": feature_table(features),
        "abs_search": search_table(features),
    }


def feature_table(features: xr.Dataset) -> Table:
    """Bytes and test accuracy of each method on fresh seeds.

    Args:
        features: as collecting.features.collect_features makes it.
    """
    frame = _measurements(features)
    groups = frame.groupby(["graph", "model", "method"], sort=False)
    rows = [_feature_row(group) for _, group in groups]
    peaks = [_peaks(group) for _, group in groups]
    values = pd.DataFrame(rows, columns=list(_FEATURE_COLUMNS))
    shown = values[["graph", "model", "method"]].copy()
    shown["average bits"] = text_column(values["average_bits"], "{:.2f}")
    shown["nominal ratio"] = text_column(values["nominal_ratio"], "{:.1f}")
    shown["packed [MiB]"] = values["packed_mib"].map(mebibytes)
    shown["packed ratio"] = text_column(values["packed_ratio"], "{:.1f}")
    shown["CSR ratio of the input"] = text_column(values["csr_ratio"], "{:.1f}")
    shown["peak / FP32 peak [MiB]"] = pd.Series(peaks, dtype=object)
    shown["FP32 [%]"] = text_column(values["accuracy_fp32"], "{:.2f}")
    shown["accuracy [%]"] = text_column(values["accuracy"], "{:.2f}")
    shown["drop [points]"] = text_column(values["drop"], "{:+.2f}")
    interval = interval_column(values["drop_low"], values["drop_high"])
    shown["95 % interval [points]"] = interval
    shown["seeds"] = text_column(values["seeds"], "{:.0f}")
    return Table(
        "Packed features",
        "Stored features of one forward pass. Average bits and nominal ratio count"
        " codes alone; packed bytes count zero points, scales, the index of nodes and"
        " padding; the peak is measured: input features and what inference needs above"
        " them. CSR ratio: the input features alone, as lossless sparse rows. ABS: bits"
        " selected on validation nodes with other seeds; tuned: fine-tuned with"
        " quantised points; 'at ... bits': the most accurate found of a granularity, at"
        " equal average bits. Accuracy: test nodes, mean over seeds; drop against FP32,"
        " paired by seed.",
        values,
        shown,
        missing=NUMBER_MISSING,
    )


def selected_table(features: xr.Dataset) -> Table:
    """What automatic selection reaches, a row per graph and model, and their mean.

    Args:
        features: as collecting.features.collect_features makes it.
    """
    values = feature_table(features).values
    for method in SELECTED:
        chosen = values[values["method"] == method]
        if len(chosen):
            break
    mean = chosen[["packed_ratio", "nominal_ratio", "drop"]].mean()
    rows = pd.concat(
        [chosen, pd.DataFrame([mean]).assign(graph="mean", model="", method=method)],
        ignore_index=True,
    )
    shown = rows[["graph", "model"]].copy()
    for title, name, pattern in (
        ("FP32 [%]", "accuracy_fp32", "{:.2f}"),
        ("selected [%]", "accuracy", "{:.2f}"),
        ("drop [points]", "drop", "{:+.2f}"),
        ("from", "drop_low", "{:+.2f}"),
        ("to", "drop_high", "{:+.2f}"),
        ("average bits", "average_bits", "{:.2f}"),
        ("nominal ratio", "nominal_ratio", "{:.1f}"),
        ("packed ratio", "packed_ratio", "{:.1f}"),
        ("CSR ratio of the input", "csr_ratio", "{:.1f}"),
        ("seeds", "seeds", "{:.0f}"),
    ):
        shown[title] = text_column(rows[name], pattern, missing="")
    packed = rows["packed_mib"].map(mebibytes).where(rows["packed_mib"].notna(), "")
    shown.insert(7, "packed [MiB]", packed)
    return Table(
        "Selected bits of stored features",
        f"Method: {method}. Bits were selected on validation nodes with other seeds,"
        " for the least packed bytes; tuned: then fine-tuned, the start competing. Test"
        " accuracy, mean over fresh seeds; the drop is paired by seed, with its 95 %"
        " interval. Ratios: full precision over packed; packed bytes count zero points,"
        " scales, padding and the index of nodes. CSR ratio: the input features alone,"
        " as lossless sparse rows.",
        rows,
        shown,
        missing=NUMBER_MISSING,
    )


def search_table(features: xr.Dataset) -> Table:
    """Every evaluation of the searches within max_drop; as text, their last ones."""
    values = pd.DataFrame(columns=list(_SEARCH_COLUMNS.values()))
    if "evaluation" in features.dims:
        names = [name for name in _SEARCH_COLUMNS if name != "best_ratio"]
        columns = [*names, "best_per_value", "aim"]
        frame = features[columns].to_dataframe().reset_index(drop=True)
        frame = frame[frame["aim"] == "max_drop"]
        frame["best_ratio"] = FULL_BITS / frame["best_per_value"]
        frame[["memory", "best_memory"]] /= MIB
        frame[["accuracy", "best_accuracy", "baseline"]] *= 100
        values = frame[list(_SEARCH_COLUMNS)].rename(columns=_SEARCH_COLUMNS)
    places = ["graph", "model", "strategy"]
    last = values.drop_duplicates(places, keep="last")
    shown = last[places].copy()
    shown["evaluations"] = text_column(last["evaluation"], "{:.0f}")
    shown["packed [MiB]"] = last["best_packed_mib"].map(mebibytes)
    shown["packed ratio"] = text_column(last["best_packed_ratio"], "{:.1f}")
    shown["validation accuracy [%]"] = text_column(last["best_accuracy"], "{:.2f}")
    shown["FP32 [%]"] = text_column(last["accuracy_fp32"], "{:.2f}")
    return Table(
        "Bit selection",
        "The least packed bytes that each strategy found within the allowed drop of"
        " validation accuracy, mean over the selection seeds, nothing fine-tuned. The"
        " CSV holds every evaluation and the best up to it.",
        values.reset_index(drop=True),
        shown,
        missing=NUMBER_MISSING,
    )


def _measurements(features: xr.Dataset) -> pd.DataFrame:
    names = ["average_bits", "packed_memory", "full_memory", "input_memory"]
    names += ["csr_memory", "peak_memory", "full_peak_memory"]
    names += ["test_accuracy", "full_test_accuracy"]
    places = ["measurement_graph", "measurement_model"]
    names = [f"measured_{name}" for name in names]
    frame = features[[*names, *places, "method"]].to_dataframe()
    return without_prefixes(frame.reset_index(drop=True))


def _feature_row(group: pd.DataFrame) -> tuple[Any, ...]:
    first = group.iloc[0]
    drop = 100 * (group["full_test_accuracy"] - group["test_accuracy"])
    return (
        first["graph"],
        first["model"],
        first["method"],
        first["average_bits"],
        FULL_BITS / first["average_bits"],
        first["packed_memory"] / MIB,
        first["full_memory"] / first["packed_memory"],
        first["input_memory"] / first["csr_memory"],
        100 * group["full_test_accuracy"].mean(),
        100 * group["test_accuracy"].mean(),
        *paired_interval(drop.to_numpy(dtype=float).round(FLOAT32_DIGITS)),
        len(group),
    )


def _peaks(group: pd.DataFrame) -> str:
    first = group.iloc[0]
    peaks = first["peak_memory"] / MIB, first["full_peak_memory"] / MIB
    return " / ".join(mebibytes(peak) for peak in peaks)
