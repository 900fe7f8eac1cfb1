"""The benchmark of training: memory, time and gradient error of every method.

Time is compared with PyTorch Geometric as its users run it: eager, in float32. Both
took turns in one process, so the ratio of their medians outlives the machine's moods.
"""

import numpy as np
import pandas as pd
import xarray as xr

from pipeline_src.report.tables.measured import GRADIENT, measured_frame
from pipeline_src.report.tables.table import (
    NOT_MEASURED,
    NUMBER_MISSING,
    Table,
    mebibytes,
    text_column,
    three_digits,
)

_COLUMNS = ["graph", "model", "method", "saved_mib", "peak_mib", "resident_mib"]
_COLUMNS += ["epoch_time_s", "epoch_time_ratio", *GRADIENT]
_COLUMNS += ["saved_with_loss_mib", "first_step_time_s"]
_COLUMNS += ["epoch_time_min_s", "epoch_time_max_s"]


def training_table(runs: xr.Dataset) -> Table:
    """What was measured alone, but for ablations; time also as a ratio to PyG eager."""
    frame = measured_frame(runs)
    frame = frame[frame["without"] == ""].reset_index(drop=True)
    is_reference = (frame["policy"] == "pyg") & (frame["technique"] == "eager")
    reference = frame[is_reference].set_index(["graph", "model"])["epoch_time_s"]
    place = pd.MultiIndex.from_frame(frame[["graph", "model"]])
    frame["epoch_time_ratio"] = frame["epoch_time_s"] / np.asarray(
        reference.reindex(place), dtype=float
    )
    values = frame.assign(method=frame["label"])[_COLUMNS]
    shown = values[["graph", "model", "method"]].copy()
    shown["saved [MiB]"] = values["saved_mib"].map(mebibytes)
    shown["step peak [MiB]"] = values["peak_mib"].map(mebibytes)
    shown["resident [MiB]"] = values["resident_mib"].map(mebibytes)
    times = ("epoch_time_s", "epoch_time_min_s", "epoch_time_max_s")
    texts = values[list(times)].map(three_digits).astype(str)  # also without rows
    median, low, high = (texts[column] for column in times)
    spread = median + " (" + low + " … " + high + ")"
    timed = values["epoch_time_s"].notna()
    shown["time per epoch [s] (min … max)"] = spread.where(timed, NOT_MEASURED)
    shown["time / PyG eager"] = text_column(values["epoch_time_ratio"], "{:.2f}")
    shown["gradient error"] = text_column(values["gradient_error"], "{:.1e}")
    bias = text_column(values["gradient_bias"], "{:.1e}").astype(str)
    error = text_column(values["gradient_bias_standard_error"], "{:.0e}").astype(str)
    shown["of it bias"] = (bias + " ± " + error).where(
        values["gradient_bias_standard_error"].notna(), bias
    )
    shown["of it variance"] = text_column(values["gradient_variance"], "{:.1e}")
    shown["saved with loss side [MiB]"] = values["saved_with_loss_mib"].map(mebibytes)
    shown["first step [s]"] = values["first_step_time_s"].map(three_digits)
    return Table(
        "Training",
        "Saved: bytes kept for backward, by the published definition. Step peak: the"
        " most a training step holds above model and data, which are resident. Time per"
        " epoch: median (least … most) of the repeats, the methods taking turns."
        " Gradient error: squared error of the weight gradients over their square;"
        " bias, with its standard error, is what is left of it when draws are averaged,"
        " and may come out below 0; variance is the rest."
        " First step: compilation included.",
        values,
        shown,
        NUMBER_MISSING,
    )
