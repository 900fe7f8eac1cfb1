"""Searches and measurements of activation settings, joined in one tidy dataset.

One entry of ``evaluation`` per measured setting of a search, one of ``answer`` per aim
and strategy, one of ``measurement`` per graph, model, method and seed. Graph and model
stand beside each, with the prefix ``answer_`` or ``measurement_``.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from pipeline_src.records.datasets import (
    FilePath,
    attributes,
    read_dataset,
    text_coord,
)

MIB = 2**20  # bytes


def collect_settings(
    selection_paths: Sequence[FilePath], measurement_paths: Sequence[FilePath]
) -> xr.Dataset:
    """Join records of choose_settings and of measure_settings, in this order.

    What a search compared with stands beside its evaluations and answers: accuracy and
    bytes of full precision, and the aims, NaN where one was not asked for.
    """
    selections = [_selection(read_dataset(path)) for path in selection_paths]
    measurements = [_measurement(read_dataset(path)) for path in measurement_paths]
    parts = [
        *(
            xr.concat(
                [one[_along(one, dim)] for one in selections],
                dim,
                combine_attrs="override",
            )
            for dim in ("evaluation", "answer")
        ),
        xr.concat(measurements, "measurement", combine_attrs="override"),
    ]
    joined = xr.merge(parts, combine_attrs="drop_conflicts")
    joined.attrs = {}
    return joined


def _along(dataset: xr.Dataset, dim: str) -> list[str]:
    return [str(name) for name in dataset.data_vars if dim in dataset[name].dims]


def _selection(record: xr.Dataset) -> xr.Dataset:
    search = json.loads(record.attrs["search"])
    place = search["run"]["graph"], search["run"]["model"]["name"]
    max_drop, max_memory = search["max_drop"], search["max_memory"]
    compared = {
        "baseline": (record.attrs["baseline"], "1", "accuracy of full precision"),
        "full_memory": (record.attrs["full_memory"], "byte", "memory of FP32"),
        "max_drop": (
            np.nan if max_drop is None else max_drop / 100,
            "1",
            "accuracy that may be lost",
        ),
        "max_memory": (
            np.nan if max_memory is None else max_memory * MIB,
            "byte",
            "memory that may be used",
        ),
    }
    for dim, prefix in (("evaluation", ""), ("answer", "answer_")):
        count = record.sizes[dim]
        record = record.assign(
            {
                f"{prefix}{name}": (
                    dim,
                    np.full(count, value, float),
                    attributes(*meaning),
                )
                for name, (value, *meaning) in compared.items()
            }
        ).assign_coords(
            {
                f"{prefix}{name}": text_coord(dim, [value] * count, name)
                for name, value in (
                    *zip(("graph", "model"), place, strict=True),
                    ("objective", search["objective"]),
                )
            }
        )
    return record


def _measurement(record: xr.Dataset) -> xr.Dataset:
    """Methods and seeds in one dimension, methods in the order of the record."""
    run = json.loads(record.attrs["run"])
    num_methods, num_seeds = record.sizes["method"], record.sizes["seed"]
    count = num_methods * num_seeds

    def repeated(name: str, long_name: str) -> tuple[Any, ...]:
        texts = np.repeat(record[name].values, num_seeds).tolist()
        return text_coord("measurement", texts, long_name)

    texts = {
        "measurement_graph": run["graph"],
        "measurement_model": run["model"]["name"],
        "provenance": record.attrs["provenance"],
    }
    return xr.Dataset(
        {
            f"measured_{name}": (
                "measurement",
                variable.transpose("method", "seed").values.ravel(),
                dict(variable.attrs),
            )
            for name, variable in record.data_vars.items()
        },
        {
            "method": repeated("method", "method"),
            "setting": repeated("setting", "what the method keeps"),
            "spec": repeated("spec", "MethodSpec as JSON"),
            "seed": (
                "measurement",
                np.tile(record["seed"].values, num_methods),
                attributes("1", "random seed"),
            ),
            **{
                name: text_coord("measurement", [text] * count, name)
                for name, text in texts.items()
            },
        },
    )
