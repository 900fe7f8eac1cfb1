"""Records: what a run leaves behind, as NetCDF, and many of them joined in one dataset.

Three shapes, all xarray datasets whose variables carry ``units`` and ``long_name``:

* a *run record* (one graph, model and method, a block of seeds), dims (seed, epoch);
* a *measurement record* (one graph and model, all methods timed side by side), dims
  (method, repeat);
* the *collected* dataset, tidy: one entry of ``run`` per cell and seed, one entry of
  ``measurement`` per measured method. A sweep need not be rectangular, so there is no
  axis per setting; what a run was asked to do stands beside it as coordinates.

*Not measured* is NaN, never 0, so counts are stored as float64 too.

A file is written whole or not at all: into a temporary file beside the target, flushed
to the disk, then renamed over it. Equal datasets give equal bytes. zlib adds a checksum
to each chunk, so a damaged file is refused instead of being read as wrong numbers.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

FilePath = str | os.PathLike[str]

# name: (units, long_name)
EPOCH_TIME = ("s", "time of one training epoch")
MEMORY_SCALARS = {
    "saved_memory": ("byte", "memory kept for backward, published definition"),
    "saved_memory_with_loss": ("byte", "memory kept for backward with the loss side"),
    "peak_memory": ("byte", "peak memory of a step above model and data"),
    "resident_memory": ("byte", "memory of model and data"),
}
RUN_SCALARS = {
    "test_accuracy": ("1", "test accuracy at the epoch of best validation accuracy"),
    "validation_accuracy": ("1", "best validation accuracy"),
    "best_epoch": ("1", "epoch of best validation accuracy"),
    "chance_accuracy": ("1", "share of the most frequent class among test nodes"),
    "num_test_nodes": ("1", "number of test nodes"),
    "epoch_time": EPOCH_TIME,
    **MEMORY_SCALARS,
}
RUN_CURVES = {
    "loss_curve": ("1", "training loss"),
    "train_accuracy_curve": ("1", "training accuracy"),
    "validation_accuracy_curve": ("1", "validation accuracy"),
    "test_accuracy_curve": ("1", "test accuracy"),
}
METHOD_COORDS = {
    "policy": "layout of what is kept for backward",
    "bits": "bits per code",
    "projection_ratio": "features per projected feature",
    "rows_per_block": "rows per quantisation block (G/R)",
    "boundaries": "how bin boundaries are placed",
}
VERSIONED_PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "xarray",
    "netCDF4",
    "snakemake",
)


def write_dataset(dataset: xr.Dataset, path: FilePath) -> None:
    """Write a dataset as NetCDF, whole or not at all, the same bytes for the same data.

    Raises:
        OSError: if the folder of path cannot be written to; an older file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # What a reader left in .encoding (chunk sizes, source) must not change the bytes.
    plain = dataset.drop_encoding()
    encoding = {
        name: {"zlib": True, "complevel": 4, "shuffle": True}
        for name, variable in plain.variables.items()
        if variable.ndim > 0 and variable.size > 0 and variable.dtype.kind in "fiub"
    }
    try:
        plain.to_netcdf(temporary, engine="netcdf4", encoding=encoding)
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(path.parent)  # the renaming itself


def read_dataset(path: FilePath) -> xr.Dataset:
    """Read a NetCDF file into memory and close it.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if the file is damaged.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist; run the rule that writes it")
    try:
        with xr.open_dataset(path, engine="netcdf4", decode_times=False) as dataset:
            return dataset.load()
    except (OSError, RuntimeError, ValueError, UnicodeDecodeError) as error:
        raise OSError(
            f"{path} is not a readable NetCDF file ({error}); delete it and run"
            " snakemake again, which makes it anew"
        ) from error


def read_boundaries(path: FilePath) -> Callable[[int, int], tuple[float, ...]]:
    """Read solved boundaries and return a function from (bits, block size) to them.

    The function returns 2**bits boundaries in bin units, first 0 and last 2**bits - 1.
    A block size outside the table takes the nearest one in it; below 4 values per block
    a block holds little but its two extremes, and the boundaries are even.

    Raises:
        ValueError: (from the function) if bits are not in the table.
    """
    table = read_dataset(path)
    tabulated_bits = [int(bits) for bits in table["bits"].values]
    block_sizes = table["block_size"].values
    boundaries = table["boundaries"].transpose("bits", "block_size", "level").values

    def boundaries_of(bits: int, block_size: int) -> tuple[float, ...]:
        if bits not in tabulated_bits:
            raise ValueError(f"bits must be one of {tabulated_bits}, got {bits}")
        num_levels = 2**bits
        if block_size < 4:
            return tuple(float(level) for level in range(num_levels))
        nearest = int(np.abs(block_sizes - block_size).argmin())
        row = boundaries[tabulated_bits.index(bits), nearest, :num_levels]
        return tuple(float(boundary) for boundary in row)

    return boundaries_of


def run_record(
    spec_json: str,
    provenance: Mapping[str, Any],
    seeds: Sequence[int],
    scalars: Mapping[str, ArrayLike],  # each one number or (num_seeds,)
    curves: Mapping[str, ArrayLike],  # each (num_seeds, num_epochs)
) -> xr.Dataset:
    """Build the record of one cell, dims (seed, epoch); epochs count from 1.

    Names are those of RUN_SCALARS and RUN_CURVES, in the units given there; what is
    left out was not measured and becomes NaN. A single number holds for every seed.

    Args:
        spec_json: the RunSpec as JSON.
        provenance: plain values, see describe_provenance.
        seeds: the seeds in the order of the first axis of the arrays.
        scalars: one value per seed.
        curves: one value per seed and epoch.

    Raises:
        ValueError: if a name is unknown or a shape does not fit.
    """
    _refuse_unknown(scalars, RUN_SCALARS, "scalars")
    _refuse_unknown(curves, RUN_CURVES, "curves")
    num_seeds = len(seeds)
    num_epochs = max((np.shape(curve)[-1] for curve in curves.values()), default=0)
    variables = {
        name: _variable(scalars, name, meaning, {"seed": num_seeds})
        for name, meaning in RUN_SCALARS.items()
    } | {
        name: _variable(curves, name, meaning, {"seed": num_seeds, "epoch": num_epochs})
        for name, meaning in RUN_CURVES.items()
    }
    coords = {
        "seed": ("seed", np.asarray(seeds, np.int64), _meaning("1", "random seed")),
        "epoch": _epoch_coordinate(num_epochs),
    }
    attrs = {"spec": spec_json, "provenance": _to_json(provenance)}
    return xr.Dataset(variables, coords, attrs)


def measurement_record(
    spec_jsons: Sequence[str],
    provenance: Mapping[str, Any],
    scalars: Mapping[str, ArrayLike],  # each (num_methods,)
    epoch_time: ArrayLike,  # (num_methods, num_repeats) seconds, NaN where not timed
) -> xr.Dataset:
    """Build the record of all methods measured on one graph and model.

    Args:
        spec_jsons: one RunSpec as JSON per method, in the order of the first axis.
        provenance: plain values, see describe_provenance.
        scalars: names of MEMORY_SCALARS; what is left out becomes NaN.
        epoch_time: one row per method, one column per repeat.

    Raises:
        ValueError: if a name is unknown, a shape does not fit, or the specs are not of
            one graph and model.
    """
    _refuse_unknown(scalars, MEMORY_SCALARS, "scalars")
    specs = [json.loads(text) for text in spec_jsons]
    places = sorted({(spec["graph"], spec["model"]["name"]) for spec in specs})
    if len(places) != 1:
        raise ValueError(
            f"specs must share one graph and one model, got {places}; write one"
            " measurement record for each"
        )
    num_methods, num_repeats = len(specs), np.shape(epoch_time)[-1]
    variables = {
        name: _variable(scalars, name, meaning, {"method": num_methods})
        for name, meaning in MEMORY_SCALARS.items()
    }
    variables["epoch_time"] = _variable(
        {"epoch_time": epoch_time},
        "epoch_time",
        EPOCH_TIME,
        {"method": num_methods, "repeat": num_repeats},
    )
    names = [spec["method"]["name"] for spec in specs]
    coords = {
        "method": _text_coord("method", names, "method"),
        "repeat": (
            "repeat",
            np.arange(num_repeats, dtype=np.int64),
            _meaning("1", "repeat"),
        ),
    }
    attrs = {
        "graph": specs[0]["graph"],
        "model": _to_json(specs[0]["model"]),
        "specs": _to_json(specs),
        "provenance": _to_json(provenance),
    }
    return xr.Dataset(variables, coords, attrs)


def describe_provenance(
    source_digest: str, device: str, threads: int
) -> dict[str, Any]:
    """Say with what a record was made: versions, machine type, device, source digest.

    No date, host name or path: the same work on the same machine gives the same record.
    """
    versions = {}
    for package in VERSIONED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "device": device,
        "threads": threads,
        "source_digest": source_digest,
    }


def collect_runs(
    run_paths: Sequence[FilePath], measurement_paths: Sequence[FilePath] = ()
) -> xr.Dataset:
    """Join run and measurement records into one tidy dataset, in the order given.

    Dims: ``run`` (cell x seed), ``epoch`` (the longest run; shorter ones end in NaN),
    ``measurement`` (graph x model x method) and ``repeat``. Settings are coordinates
    on ``run`` and, with the prefix ``measurement_``, on ``measurement``; so are the
    full ``spec`` and ``provenance`` as JSON. Measured variables are ``measured_...``.
    """
    runs = _join_runs([read_dataset(path) for path in run_paths])
    measured = _join_measurements([read_dataset(path) for path in measurement_paths])
    return runs.merge(measured, join="exact", combine_attrs="no_conflicts")


def _join_runs(records: list[xr.Dataset]) -> xr.Dataset:
    num_epochs = max((record.sizes["epoch"] for record in records), default=0)
    rows = [(record, index) for record in records for index in range(record.seed.size)]
    variables: dict[str, Any] = {}
    for name, meaning in RUN_SCALARS.items():
        values = [float(record[name].values[index]) for record, index in rows]
        variables[name] = _variable({name: values}, name, meaning, {"run": len(rows)})
    for name, meaning in RUN_CURVES.items():
        curves = np.full((len(rows), num_epochs), np.nan)
        for curve, (record, index) in zip(curves, rows, strict=True):
            curve[: record.sizes["epoch"]] = record[name].values[index]
        variables[name] = (("run", "epoch"), curves, _meaning(*meaning))
    specs = [json.loads(record.attrs["spec"]) for record, _ in rows]
    coords = _setting_coords(specs, "run", prefix="")
    coords["seed"] = (
        "run",
        np.asarray([record.seed.values[index] for record, index in rows], np.int64),
        _meaning("1", "random seed"),
    )
    provenance = [record.attrs["provenance"] for record, _ in rows]
    coords["provenance"] = _text_coord("run", provenance, "provenance as JSON")
    coords["epoch"] = _epoch_coordinate(num_epochs)
    return xr.Dataset(variables, coords)


def _join_measurements(records: list[xr.Dataset]) -> xr.Dataset:
    num_repeats = max((record.sizes["repeat"] for record in records), default=0)
    rows = [
        (record, index) for record in records for index in range(record.method.size)
    ]
    variables: dict[str, Any] = {}
    for name, (units, long_name) in MEMORY_SCALARS.items():
        values = np.asarray([float(record[name].values[i]) for record, i in rows])
        variables[f"measured_{name}"] = (
            "measurement",
            values.reshape(len(rows)),
            _meaning(units, f"{long_name}, measured alone"),
        )
    times = np.full((len(rows), num_repeats), np.nan)
    for row, (record, index) in zip(times, rows, strict=True):
        row[: record.sizes["repeat"]] = record["epoch_time"].values[index]
    variables["measured_epoch_time"] = (
        ("measurement", "repeat"),
        times,
        _meaning(EPOCH_TIME[0], f"{EPOCH_TIME[1]}, measured alone"),
    )
    specs = [json.loads(record.attrs["specs"])[index] for record, index in rows]
    coords = _setting_coords(specs, "measurement", prefix="measurement_")
    coords["measurement_provenance"] = _text_coord(
        "measurement",
        [record.attrs["provenance"] for record, _ in rows],
        "provenance as JSON",
    )
    return xr.Dataset(variables, coords)


def _setting_coords(
    specs: list[dict[str, Any]], dim: str, prefix: str
) -> dict[str, Any]:
    """Return the settings of each spec as coordinates along dim."""
    coords: dict[str, Any] = {
        "spec": _text_coord(dim, [_to_json(spec) for spec in specs], "RunSpec as JSON"),
        "graph": _text_coord(dim, [spec["graph"] for spec in specs], "graph"),
        "model": _text_coord(dim, [spec["model"]["name"] for spec in specs], "model"),
        "layer": _text_coord(
            dim, [spec["model"]["layer"] for spec in specs], "kind of layer"
        ),
        "method": _text_coord(
            dim, [spec["method"]["name"] for spec in specs], "method"
        ),
        "label": _text_coord(
            dim, [spec["method"]["label"] for spec in specs], "method, as shown"
        ),
    }
    for name, long_name in METHOD_COORDS.items():
        values = [spec["method"][name] for spec in specs]
        if name in ("policy", "boundaries"):
            coords[name] = _text_coord(dim, values, long_name)
        else:
            coords[name] = (dim, np.asarray(values, np.int64), _meaning("1", long_name))
    return {f"{prefix}{name}": coord for name, coord in coords.items()}


def _text_coord(dim: str, texts: list[str], long_name: str) -> tuple[Any, ...]:
    return dim, np.asarray(texts, dtype=str), _meaning("1", long_name)


def _epoch_coordinate(num_epochs: int) -> tuple[Any, ...]:
    epochs = np.arange(1, num_epochs + 1, dtype=np.int64)
    return "epoch", epochs, _meaning("1", "training epoch")


def _variable(
    values: Mapping[str, ArrayLike],
    name: str,
    meaning: tuple[str, str],
    sizes: dict[str, int],
) -> tuple[Any, ...]:
    """Return (dims, float64 array, attributes); NaN where values lack the name."""
    shape = tuple(sizes.values())
    given = np.asarray(values.get(name, np.nan), dtype=np.float64)
    if given.ndim and given.shape != shape:
        raise ValueError(
            f"{name} must have the shape {sizes} or be one number, got {given.shape}"
        )
    return tuple(sizes), np.broadcast_to(given, shape).copy(), _meaning(*meaning)


def _refuse_unknown(
    given: Mapping[str, Any], known: Mapping[str, Any], what: str
) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{what} must be among {list(known)}, got {unknown}")


def _meaning(units: str, long_name: str) -> dict[str, str]:
    return {"units": units, "long_name": long_name}


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _flush(path: Path) -> None:
    """Make sure what was written to a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
