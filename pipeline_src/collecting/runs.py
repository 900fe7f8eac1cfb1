"""Many records, joined in one dataset.

The collected dataset is tidy: one entry of ``run`` per cell and seed, one entry of
``measurement`` per measured method. A sweep need not be rectangular, so there is no
axis per setting; what a run was asked to do stands beside it as coordinates.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pipeline_src.graphs.sizes import GRAPH_SIZES
from pipeline_src.records.datasets import (
    EPOCH_TIME,
    MEASUREMENT_SCALARS,
    RUN_CURVES,
    RUN_SCALARS,
    FilePath,
    attributes,
    epoch_coord,
    read_datasets,
    text_coord,
)
from pipeline_src.training.spec import params_of

METHOD_COORDS = {
    "policy": "layout of what is kept for backward",
    "technique": "how PyTorch Geometric saves memory",
    "bits": "bits per code",
    "projection_ratio": "features per projected feature",
    "rows_per_block": "rows per quantisation block (G/R)",
    "boundaries": "how bin boundaries are placed",
    "layer_bits": "bits per code of each hidden layer, where they differ",
    "without": "ideas of the lean layout that are switched off",
}
MODEL_COORDS = {"num_layers": "number of convolutions", "hidden": "hidden features"}
GRAPH_COORDS = {
    "num_nodes": "number of nodes, NaN where not known beforehand",
    "num_features": "number of input features, NaN where not known beforehand",
}


def collect_runs(
    run_paths: Sequence[FilePath],
    measurement_paths: Sequence[FilePath] = (),
    labels: Mapping[str, str] | None = None,
    asked: Mapping[str, Sequence[str]] | None = None,
) -> xr.Dataset:
    """Join run and measurement records into one tidy dataset, in the order given.

    `labels` gives methods, by their names, the labels of tables and figures; where it
    is silent those of the records hold. `asked` is what each record should hold, by the
    name of its file without its ending: `to_params` of every RunSpec.

    Dims: ``run`` (cell x seed), ``epoch`` (the longest run; shorter ones end in NaN),
    ``measurement`` (graph x model x method) and ``repeat``. Settings are coordinates
    on ``run`` and, with the prefix ``measurement_``, on ``measurement``; so are the
    full ``spec`` and ``provenance`` as JSON. Measured variables are ``measured_...``.

    Raises:
        OSError: if records are damaged, naming each and how to make it again.
        ValueError: if records are of another configuration than what is asked.
    """
    labels = labels or {}
    run_records = read_datasets(run_paths)
    measurement_records = read_datasets(measurement_paths)
    if asked is not None:
        paths = [*run_paths, *measurement_paths]
        records = [*run_records, *measurement_records]
        _refuse_outdated(zip(paths, records, strict=True), asked)
    runs = _join_runs(run_records, labels)
    measured = _join_measurements(measurement_records, labels)
    return runs.merge(measured, join="exact", combine_attrs="no_conflicts")


def _refuse_outdated(
    records: Iterable[tuple[FilePath, xr.Dataset]], asked: Mapping[str, Sequence[str]]
) -> None:
    """Snakemake reruns what other parameters made, if it saw the job to its end.

    A job on a cluster may outlive its killed workflow; what it leaves is of unknown
    parameters.
    """
    outdated = {
        str(path): difference
        for path, record in records
        if (difference := _differences(record, asked[Path(path).stem]))
    }
    if outdated:
        lines = [f"{path}: {difference}" for path, difference in outdated.items()]
        raise ValueError(
            "records of another configuration than the present one:\n"
            + "\n".join(lines)
            + "\nDelete them and run snakemake again, which makes them anew: "
            + shlex.join(["rm", *outdated])
        )


def _differences(record: xr.Dataset, asked: Sequence[str]) -> str:
    """What a record was made with that is not what is asked; "" if nothing."""
    whole = "spec" in record.attrs  # of a run; a measurement has one per method
    specs = json.loads(record.attrs["spec" if whole else "specs"])
    made = [params_of(spec) for spec in ([specs] if whole else specs)]
    if len(made) != len(asked):
        return f"{len(made)} methods, {len(asked)} are asked for"
    differences = [
        f"{name} is {had.get(name)}, {wanted.get(name)} is asked for"
        for one, other in zip(made, asked, strict=True)
        for had, wanted in [(_flat(json.loads(one)), _flat(json.loads(other)))]
        for name in had | wanted
        if had.get(name) != wanted.get(name)
    ]
    return "; ".join(dict.fromkeys(differences))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Names with dots for what is nested."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _join_runs(records: list[xr.Dataset], labels: Mapping[str, str]) -> xr.Dataset:
    num_epochs = max((record.sizes["epoch"] for record in records), default=0)
    rows = [(record, index) for record in records for index in range(record.seed.size)]
    variables: dict[str, Any] = {}
    for name, meaning in RUN_SCALARS.items():
        values = [float(record[name].values[index]) for record, index in rows]
        variables[name] = ("run", np.asarray(values, float), attributes(*meaning))
    for name, meaning in RUN_CURVES.items():
        curves = np.full((len(rows), num_epochs), np.nan)
        for curve, (record, index) in zip(curves, rows, strict=True):
            curve[: record.sizes["epoch"]] = record[name].values[index]
        variables[name] = (("run", "epoch"), curves, attributes(*meaning))
    specs = [_labelled(json.loads(record.attrs["spec"]), labels) for record, _ in rows]
    coords = _setting_coords(specs, "run", prefix="")
    coords["seed"] = (
        "run",
        np.asarray([record.seed.values[index] for record, index in rows], np.int64),
        attributes("1", "random seed"),
    )
    provenance = [record.attrs["provenance"] for record, _ in rows]
    coords["provenance"] = text_coord("run", provenance, "provenance as JSON")
    coords["epoch"] = epoch_coord(num_epochs)
    return xr.Dataset(variables, coords)


def _join_measurements(
    records: list[xr.Dataset], labels: Mapping[str, str]
) -> xr.Dataset:
    num_repeats = max((record.sizes["repeat"] for record in records), default=0)
    rows = [
        (record, index) for record in records for index in range(record.method.size)
    ]
    variables: dict[str, Any] = {}
    for name, (units, long_name) in MEASUREMENT_SCALARS.items():
        values = np.asarray([float(record[name].values[i]) for record, i in rows])
        variables[f"measured_{name}"] = (
            "measurement",
            values.reshape(len(rows)),
            attributes(units, f"{long_name}, measured alone"),
        )
    times = np.full((len(rows), num_repeats), np.nan)
    for row, (record, index) in zip(times, rows, strict=True):
        row[: record.sizes["repeat"]] = record["epoch_time"].values[index]
    variables["measured_epoch_time"] = (
        ("measurement", "repeat"),
        times,
        attributes(EPOCH_TIME[0], f"{EPOCH_TIME[1]}, measured alone"),
    )
    specs = [
        _labelled(json.loads(record.attrs["specs"])[index], labels)
        for record, index in rows
    ]
    coords = _setting_coords(specs, "measurement", prefix="measurement_")
    coords["measurement_provenance"] = text_coord(
        "measurement",
        [record.attrs["provenance"] for record, _ in rows],
        "provenance as JSON",
    )
    return xr.Dataset(variables, coords)


def _labelled(spec: dict[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    method = spec["method"]
    label = labels.get(method["name"], method["label"])
    return {**spec, "method": {**method, "label": label}}


def _setting_coords(
    specs: list[dict[str, Any]], dim: str, prefix: str
) -> dict[str, Any]:
    """Return the settings of each spec as coordinates along dim."""
    coords: dict[str, Any] = {
        "spec": text_coord(
            dim, [json.dumps(spec, sort_keys=True) for spec in specs], "RunSpec as JSON"
        ),
        "graph": text_coord(dim, [spec["graph"] for spec in specs], "graph"),
        "model": text_coord(dim, [spec["model"]["name"] for spec in specs], "model"),
        "layer": text_coord(
            dim, [spec["model"]["layer"] for spec in specs], "kind of layer"
        ),
        "method": text_coord(dim, [spec["method"]["name"] for spec in specs], "method"),
        "label": text_coord(
            dim, [spec["method"]["label"] for spec in specs], "method, as shown"
        ),
    }
    for name, long_name in METHOD_COORDS.items():
        values = [spec["method"][name] for spec in specs]
        if name in ("layer_bits", "without"):
            values = [", ".join(map(str, value)) for value in values]
        if name in ("bits", "projection_ratio", "rows_per_block"):
            coords[name] = dim, np.asarray(values, np.int64), attributes("1", long_name)
        else:
            coords[name] = text_coord(dim, values, long_name)
    for name, long_name in MODEL_COORDS.items():
        values = [spec["model"][name] for spec in specs]
        coords[name] = dim, np.asarray(values, np.int64), attributes("1", long_name)
    sizes = [GRAPH_SIZES.get(spec["graph"]) for spec in specs]
    for name, long_name in GRAPH_COORDS.items():
        known = [np.nan if one is None else getattr(one, name) for one in sizes]
        coords[name] = dim, np.asarray(known, np.float64), attributes("1", long_name)
    return {f"{prefix}{name}": coord for name, coord in coords.items()}
