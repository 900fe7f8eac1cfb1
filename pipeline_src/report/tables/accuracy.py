"""Test accuracy over seeds, compared with full precision.

The comparison is *pairwise*: a method and FP32 that were trained from one seed share
their initial weights, so their difference is taken per seed. Its mean has a Student
interval; a difference exceeds the seed noise when the 95 % interval leaves out zero.
"""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from pipeline_src.report.tables.table import (
    NOT_MEASURED,
    Table,
    text_column,
    three_digits,
)

CONFIDENCE = 0.95
ITSELF = "–"  # FP32 compared with FP32
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
    shown["seeds"] = text_column(values["seeds"], "{:.0f}")
    shown["test accuracy [%]"] = text_column(
        values["test accuracy mean [%]"], "{:.2f}"
    ) + text_column(values["test accuracy std [%]"], " ± {:.2f}", missing="")
    compared = values["exceeds seed noise"] != ITSELF
    gap = text_column(values["difference to FP32 [points]"], "{:+.2f}")
    low = text_column(values["interval low [points]"], "{:+.2f}")
    high = text_column(values["interval high [points]"], "{:+.2f}")
    known = values["interval low [points]"].notna()
    interval = (low + " … " + high).where(known, NOT_MEASURED)
    shown["difference to FP32 [points]"] = gap.where(compared, ITSELF)
    shown["95 % interval [points]"] = interval.where(compared, ITSELF)
    shown["exceeds seed noise"] = values["exceeds seed noise"]
    shown["epochs/s"] = values["epochs/s"].map(three_digits)
    return Table(
        "Accuracy",
        "Test accuracy at the epoch of best validation accuracy: mean ± standard"
        " deviation over seeds. Differences are paired by seed, in percentage points;"
        " they exceed the seed noise when the 95 % interval of their mean leaves out 0."
        " Epochs/s: median over seeds, while training; other jobs may have run beside.",
        values,
        shown,
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


def _baseline(frame: pd.DataFrame, group: pd.DataFrame) -> pd.DataFrame:
    """Return seed and test accuracy of FP32 on the group's graph and model."""
    first = group.iloc[0]
    same_place = (frame["graph"] == first["graph"]) & (frame["model"] == first["model"])
    fp32 = frame[same_place & (frame["policy"] == "full")]
    return fp32[["seed", "test_accuracy"]]
