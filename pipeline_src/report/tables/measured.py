"""What was measured alone, one row per graph, model and method."""

import warnings

import numpy as np
import pandas as pd
import xarray as xr

MIB = 2**20  # bytes
SETTINGS = ["graph", "model", "method", "label", "policy", "technique", "bits"]
SETTINGS += ["layer_bits", "projection_ratio", "rows_per_block", "boundaries"]
SETTINGS += ["without"]
_MEMORY = {
    "saved_memory": "saved_mib",
    "saved_memory_with_loss": "saved_with_loss_mib",
    "peak_memory": "peak_mib",
    "resident_memory": "resident_mib",
}
GRADIENT = ["gradient_error", "gradient_bias", "gradient_bias_standard_error"]
GRADIENT += ["gradient_variance"]
_OTHER = {"first_step_time": "first_step_time_s", **{name: name for name in GRADIENT}}


def without_prefixes(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of a measurement by the names that they have in a run."""
    return frame.rename(
        columns=lambda name: name.removeprefix("measurement_").removeprefix("measured_")
    )


def measured_frame(runs: xr.Dataset) -> pd.DataFrame:
    """Settings by their names, memory in MiB, times in seconds; NaN: not measured.

    epoch_time_s is the median of the repeats, epoch_time_min_s and epoch_time_max_s
    their least and their most.
    """
    frame = pd.DataFrame(
        {name: runs[f"measurement_{name}"].values for name in SETTINGS}
    )
    for name, column in _MEMORY.items():
        frame[column] = runs[f"measured_{name}"].values / MIB
    for name, column in _OTHER.items():
        frame[column] = runs[f"measured_{name}"].values
    times = runs["measured_epoch_time"].values
    if times.shape[1] == 0:  # nothing was timed at all
        times = np.full((len(frame), 1), np.nan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN|Mean of empty", RuntimeWarning)
        frame["epoch_time_s"] = np.nanmedian(times, axis=1)
        frame["epoch_time_min_s"] = np.nanmin(times, axis=1)
        frame["epoch_time_max_s"] = np.nanmax(times, axis=1)
    return frame
