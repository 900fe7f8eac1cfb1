"""Records of searches and measurements of feature bits, joined in one dataset.

Tidy, like the collected runs: one entry of ``evaluation`` per measured configuration of
a search, one entry of ``measurement`` per graph, model, method and seed, whose bytes
stand beside its accuracies.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pipeline_src.records.datasets import (
    FilePath,
    attributes,
    read_datasets,
    text_coord,
)


def collect_features(
    selection_paths: Sequence[FilePath], measurement_paths: Sequence[FilePath]
) -> xr.Dataset:
    """Join records of select_feature_bits and of measure_feature_bits, in this order.

    Graph, model and hyper-parameters stand beside each entry, with the prefix
    ``measurement_`` beside measurements, whose variables are called ``measured_...``.
    So do the accuracy that a search compared with, and a measurement's provenance.

    Raises:
        OSError: if records are damaged, naming each and how to make it again.
    """
    evaluations = [_evaluations(one) for one in read_datasets(selection_paths)]
    measurements = [_measurements(one) for one in read_datasets(measurement_paths)]
    joined = xr.merge(
        [
            xr.concat(parts, dim, combine_attrs="drop_conflicts")
            for parts, dim in (
                (evaluations, "evaluation"),
                (measurements, "measurement"),
            )
            if parts
        ],
        combine_attrs="drop_conflicts",
    )
    joined.attrs = {}  # stand beside each entry
    return joined


def _evaluations(record: xr.Dataset) -> xr.Dataset:
    rows = record.drop_dims("choice")
    count = rows.sizes["evaluation"]
    baseline = np.full(count, record.attrs["baseline"])
    max_drop = np.full(count, json.loads(record.attrs["search"])["max_drop"] / 100)
    return rows.assign(
        baseline=(
            "evaluation",
            baseline,
            attributes("1", "validation accuracy in full precision"),
        ),
        max_drop=(
            "evaluation",
            max_drop,
            attributes("1", "accuracy that may be lost"),
        ),
    ).assign_coords(_place(record, "evaluation", count))


def _measurements(record: xr.Dataset) -> xr.Dataset:
    frame = record.to_dataframe().reset_index()
    dims: dict[str, Any] = {}
    for name, column in frame.items():
        variable = record[str(name)]
        if pd.api.types.is_numeric_dtype(column):
            values = column.to_numpy()
            dims[str(name)] = "measurement", values, dict(variable.attrs)
        else:
            texts = column.astype(str).tolist()
            dims[str(name)] = text_coord(
                "measurement", texts, variable.attrs["long_name"]
            )
    coords = {name: dims.pop(name) for name in ("method", "seed", "bits")}
    coords |= _place(record, "measurement", len(frame), prefix="measurement_")
    coords["provenance"] = text_coord(
        "measurement", [record.attrs["provenance"]] * len(frame), "provenance as JSON"
    )
    variables = {f"measured_{name}": variable for name, variable in dims.items()}
    return xr.Dataset(variables, coords)


def _place(
    record: xr.Dataset, dim: str, count: int, prefix: str = ""
) -> dict[str, tuple[Any, ...]]:
    training = json.loads(record.attrs["training"])
    texts = {name: training[name] for name in ("graph", "model")}
    texts["hyperparameters"] = record.attrs["hyperparameters"]
    return {
        f"{prefix}{name}": text_coord(dim, [text] * count, name)
        for name, text in texts.items()
    }
