"""What was measured alone, as a tidy frame: one row per graph, model and method."""

import warnings

import numpy as np
import pandas as pd
import xarray as xr

from pipeline_src.report.drawing.frames import MIB, places

SETTINGS = ["graph", "model", "layer", "label", "policy", "technique", "bits"]
SETTINGS += ["layer_bits", "rows_per_block", "boundaries", "without"]
SETTINGS += ["num_layers", "hidden", "num_nodes", "num_features"]


def measured_alone(runs: xr.Dataset) -> pd.DataFrame:
    """Settings, place, saved and peak [MiB], median epoch time [s], gradient error."""
    frame = pd.DataFrame(
        {name: runs[f"measurement_{name}"].values for name in SETTINGS}
    )
    frame["place"] = places(frame["graph"], frame["model"])
    frame["saved"] = runs["measured_saved_memory"].values / MIB
    frame["peak"] = runs["measured_peak_memory"].values / MIB
    frame["error"] = runs["measured_gradient_error"].values
    times = runs["measured_epoch_time"].values
    if times.shape[1] == 0:  # nothing was timed at all
        times = np.full((len(frame), 1), np.nan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN|Mean of empty", RuntimeWarning)
        frame["time"] = np.nanmedian(times, axis=1)
    return frame
