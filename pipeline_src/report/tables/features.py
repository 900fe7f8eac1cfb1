"""Stored features in few bits: what was chosen, what it costs, how it was found.

Ratios are full precision over compressed, above 1 is better. Drops are full precision
minus compressed, in percentage points, paired by seed, so a gain is negative. Full
precision stands there twice: as it was trained, and tuned for as many epochs as packed
networks are, by the same rule. A tuned network's drop is fair against the latter only:
the former shows what packing and more epochs do together.

Means over graphs are given with and without the graph whose full precision hardly
trains from some seeds, where a drop tells of luck; and, if a place was trained with
hyper-parameters of its own as well, with these in place of the published ones.
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

_TITLES = {"hyperparameters": "hyper-parameters"}
FULL_BITS = 32
SELECTED = ("ABS tuned", "ABS")  # the first that was measured is the method's result
PUBLISHED = "published"  # begins the text of hyper-parameters that are all published
UNRELIABLE = "computers"  # with the published hyper-parameters
FLOAT32_DIGITS = 4  # of points, which shares in float32 have after the decimal point
_FEATURE_COLUMNS = (
    "graph",
    "model",
    "hyperparameters",
    "method",
    "average_bits",
    "nominal_ratio",
    "packed_mib",
    "packed_ratio",
    "csr_ratio",
    "accuracy_fp32",
    "accuracy_fp32_tuned",
    "accuracy",
    "drop",
    "drop_low",
    "drop_high",
    "drop_tuned",
    "drop_tuned_low",
    "drop_tuned_high",
    "seeds",
)
_AVERAGED = ["packed_ratio", "nominal_ratio", "drop", "drop_tuned"]
_PLACE = ["graph", "model", "hyperparameters"]
_SEARCH_COLUMNS = {
    "graph": "graph",
    "model": "model",
    "hyperparameters": "hyperparameters",
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
    groups = frame.groupby([*_PLACE, "method"], sort=False)
    rows = [_feature_row(group) for _, group in groups]
    peaks = [_peaks(group) for _, group in groups]
    values = pd.DataFrame(rows, columns=list(_FEATURE_COLUMNS))
    shown = values[[*_PLACE, "method"]].rename(columns=_TITLES)
    shown["average bits"] = text_column(values["average_bits"], "{:.2f}")
    shown["nominal ratio"] = text_column(values["nominal_ratio"], "{:.1f}")
    shown["packed [MiB]"] = values["packed_mib"].map(mebibytes)
    shown["packed ratio"] = text_column(values["packed_ratio"], "{:.1f}")
    shown["CSR ratio of the input"] = text_column(values["csr_ratio"], "{:.1f}")
    shown["peak / FP32 peak [MiB]"] = pd.Series(peaks, dtype=object)
    shown["FP32 [%]"] = text_column(values["accuracy_fp32"], "{:.2f}")
    shown["FP32 tuned [%]"] = text_column(values["accuracy_fp32_tuned"], "{:.2f}")
    shown["accuracy [%]"] = text_column(values["accuracy"], "{:.2f}")
    for against, name in (("FP32", "drop"), ("FP32 tuned", "drop_tuned")):
        shown[f"drop to {against} [points]"] = text_column(values[name], "{:+.2f}")
        interval = interval_column(values[f"{name}_low"], values[f"{name}_high"])
        shown[f"95 % interval to {against} [points]"] = interval
    shown["seeds"] = text_column(values["seeds"], "{:.0f}")
    return Table(
        "Packed features",
        "Stored features of one forward pass. Average bits and nominal ratio count"
        " codes alone; packed bytes count zero points, scales, the index of nodes and"
        " padding; the peak is measured: input features and what inference needs above"
        " them. CSR ratio: the input features alone, as lossless sparse rows. ABS: bits"
        " selected on validation nodes with other seeds; tuned: fine-tuned with"
        " quantised points; 'at ... bits': the most accurate found of a granularity, at"
        " equal average bits. Accuracy: test nodes, mean over seeds; drops are paired"
        " by seed. FP32 tuned: trained on for the epochs of fine-tuning, the best"
        " validation epoch selected as there; the fair comparison for tuned methods.",
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
    means = pd.DataFrame(_means(chosen)).assign(model="", method=method)
    rows = pd.concat([chosen, means], ignore_index=True)
    shown = rows[_PLACE].rename(columns=_TITLES)
    for title, name, pattern in (
        ("FP32 [%]", "accuracy_fp32", "{:.2f}"),
        ("FP32 tuned [%]", "accuracy_fp32_tuned", "{:.2f}"),
        ("selected [%]", "accuracy", "{:.2f}"),
        ("drop to FP32 [points]", "drop", "{:+.2f}"),
        ("from", "drop_low", "{:+.2f}"),
        ("to", "drop_high", "{:+.2f}"),
        ("drop to FP32 tuned [points]", "drop_tuned", "{:+.2f}"),
        ("tuned from", "drop_tuned_low", "{:+.2f}"),
        ("tuned to", "drop_tuned_high", "{:+.2f}"),
        ("average bits", "average_bits", "{:.2f}"),
        ("nominal ratio", "nominal_ratio", "{:.1f}"),
        ("packed ratio", "packed_ratio", "{:.1f}"),
        ("CSR ratio of the input", "csr_ratio", "{:.1f}"),
        ("seeds", "seeds", "{:.0f}"),
    ):
        of_places = rows["seeds"].notna() | (name in _AVERAGED)
        shown[title] = text_column(rows[name], pattern).where(of_places, "")
    packed = rows["packed_mib"].map(mebibytes).where(rows["packed_mib"].notna(), "")
    shown.insert(list(shown.columns).index("average bits"), "packed [MiB]", packed)
    return Table(
        "Selected bits of stored features",
        f"Method: {method}. Bits were selected on validation nodes with other seeds,"
        " for the least packed bytes; tuned: then fine-tuned, the start competing. Test"
        " accuracy, mean over fresh seeds; drops are paired by seed, with their 95 %"
        " intervals. FP32 tuned: full precision, trained on for as many epochs as the"
        " packed network and selected by the same rule; the drop to it is packing's"
        " alone. Means are over rows of published hyper-parameters; own ones stand in"
        " for them where a row says so. Ratios: full precision over packed; packed"
        " bytes count zero points, scales, padding, the index of nodes. CSR ratio: the"
        " input features alone, as lossless sparse rows.",
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
    places = [*_PLACE, "strategy"]
    last = values.drop_duplicates(places, keep="last")
    shown = last[places].rename(columns=_TITLES)
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
    names += ["test_accuracy", "full_test_accuracy", "full_tuned_test_accuracy"]
    places = [f"measurement_{name}" for name in _PLACE]
    names = [f"measured_{name}" for name in names]
    frame = features[[*names, *places, "method"]].to_dataframe()
    return without_prefixes(frame.reset_index(drop=True))


def _feature_row(group: pd.DataFrame) -> tuple[Any, ...]:
    first = group.iloc[0]
    return (
        *first[_PLACE],
        first["method"],
        first["average_bits"],
        FULL_BITS / first["average_bits"],
        first["packed_memory"] / MIB,
        first["full_memory"] / first["packed_memory"],
        first["input_memory"] / first["csr_memory"],
        100 * group["full_test_accuracy"].mean(),
        100 * group["full_tuned_test_accuracy"].mean(),
        100 * group["test_accuracy"].mean(),
        *_drop(group, "full_test_accuracy"),
        *_drop(group, "full_tuned_test_accuracy"),
        len(group),
    )


def _drop(group: pd.DataFrame, full: str) -> tuple[float, float, float]:
    """Mean and interval of the accuracy that a method loses, in points."""
    drop = 100 * (group[full] - group["test_accuracy"])
    return paired_interval(drop.to_numpy(dtype=float).round(FLOAT32_DIGITS))


def _means(chosen: pd.DataFrame) -> list[dict[str, Any]]:
    """What is reached on average, and over how many graphs and models."""
    published = chosen[chosen["hyperparameters"].str.startswith(PUBLISHED)]
    own = chosen.drop(published.index)
    places = [pd.MultiIndex.from_frame(one[_PLACE[:2]]) for one in (published, own)]
    replaced = pd.concat([published[~places[0].isin(places[1])], own])
    reliable = published[published["graph"] != UNRELIABLE]
    sets = {("mean", PUBLISHED): published}
    if len(reliable) < len(published):
        sets[f"mean without {UNRELIABLE}", PUBLISHED] = reliable
    if len(own):
        sets["mean", f"own, else {PUBLISHED}"] = replaced
    return [
        {"graph": name, "hyperparameters": which, **rows[_AVERAGED].mean(skipna=False)}
        for (name, which), rows in sets.items()
        if len(rows)
    ]


def _peaks(group: pd.DataFrame) -> str:
    first = group.iloc[0]
    peaks = first["peak_memory"] / MIB, first["full_peak_memory"] / MIB
    return " / ".join(mebibytes(peak) for peak in peaks)
