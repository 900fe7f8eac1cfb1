"""Records: what a run leaves behind, as NetCDF.

Two shapes, both xarray datasets whose variables carry ``units`` and ``long_name``:

* a *run record* (one graph, model and method, a block of seeds), dims (seed, epoch);
* a *measurement record* (one graph and model, all methods timed side by side), dims
  (method, repeat).

A third, of kernels instead of runs, is described in `measuring/kernels.py`.

*Not measured* is NaN, never 0, so counts are stored as float64 too.

A file is written whole or not at all, and equal datasets give equal bytes. It carries a
checksum of its contents, so a damaged file is refused instead of being read as wrong
numbers.
"""

import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from pipeline_src.records.claims import can_lock
from pipeline_src.records.versions import package_versions
from pipeline_src.records.whole_files import written_whole

# Files are written under names of their own and renamed, so HDF5's locks guard nothing;
# where a file system knows none, they make every file fail. Read when HDF5 is loaded.
_ASKED_IN_TIME = "HDF5_USE_FILE_LOCKING" in os.environ or "netCDF4" not in sys.modules
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

FilePath = str | os.PathLike[str]

CHECKSUM = "content_checksum"  # attribute of each file, of no dataset
# What reading a damaged NetCDF file can raise.
DAMAGE = (
    AttributeError,
    LookupError,
    MemoryError,  # sizes that no dataset has
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

# name: (units, long_name)
EPOCH_TIME = ("s", "time of one training epoch")
MEMORY_SCALARS = {
    "saved_memory": ("byte", "memory kept for backward, published definition"),
    "saved_memory_with_loss": ("byte", "memory kept for backward with the loss side"),
    "peak_memory": ("byte", "peak memory of a step above model and data"),
    "resident_memory": ("byte", "memory of model and data"),
}
MEASUREMENT_SCALARS = {
    **MEMORY_SCALARS,
    "first_step_time": ("s", "time of the first step, compilation included"),
    "gradient_error": ("1", "relative squared error of the weight gradients"),
    "gradient_bias": ("1", "part of the gradient error that is bias"),
    "gradient_bias_standard_error": ("1", "standard error of gradient_bias"),
    "gradient_variance": ("1", "part of the gradient error that is variance"),
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


def write_dataset(dataset: xr.Dataset, path: FilePath) -> None:
    """Write a dataset as NetCDF, whole or not at all, the same bytes for the same data.

    Raises:
        OSError: if it cannot be written, naming the file and the remedy; an older file
            stays.
    """
    # What a reader left in .encoding (chunk sizes, source) must not change the bytes.
    plain = dataset.drop_encoding()
    encoding = {
        name: {"zlib": True, "complevel": 4, "shuffle": True}
        for name, variable in plain.variables.items()
        if variable.ndim > 0 and variable.size > 0 and variable.dtype.kind in "fiub"
    }
    plain = plain.assign_attrs({CHECKSUM: content_checksum(plain)})
    with written_whole(path) as temporary:
        try:
            plain.to_netcdf(temporary, engine="netcdf4", encoding=encoding)
        except PermissionError as error:
            _blame_locks(temporary, error)
            raise


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
            dataset = dataset.load()
        expected = dataset.attrs.pop(CHECKSUM, None)
        if expected is not None and content_checksum(dataset) != expected:
            raise ValueError("its contents do not match their checksum")
    except DAMAGE as error:
        _blame_locks(path, error)
        raise OSError(
            f"{path} is not a readable NetCDF file ({error}); delete it and run"
            f" snakemake again, which makes it anew: rm {shlex.quote(str(path))}"
        ) from error
    return dataset


def _blame_locks(path: FilePath, error: Exception) -> None:
    """Tell a file that HDF5 could not lock from one without rights, or damaged.

    Raises:
        OSError: if HDF5 locks files, and they cannot be locked where this one lies.
    """
    wish = os.environ["HDF5_USE_FILE_LOCKING"].upper()
    locks = wish not in ("FALSE", "0") or not _ASKED_IN_TIME
    if locks and not can_lock(Path(path).parent):
        raise OSError(
            f"{path}: HDF5 locks files, and files cannot be locked there. Set "
            "HDF5_USE_FILE_LOCKING=FALSE before Python starts, or import pipeline_src "
            "before netCDF4; nothing is wrong with the file"
        ) from error


def read_datasets(paths: Iterable[FilePath]) -> list[xr.Dataset]:
    """Read many files; one error names all that are damaged.

    Raises:
        FileNotFoundError: if one of them does not exist.
        OSError: if some are damaged.
    """
    datasets, problems = [], []
    for path in paths:
        try:
            datasets.append(read_dataset(path))
        except FileNotFoundError:
            raise
        except OSError as error:
            problems.append(str(error))
    if problems:
        raise OSError("\n".join(problems))
    return datasets


def content_checksum(dataset: xr.Dataset) -> str:
    """SHA-256 of what a dataset says, however a file encodes it."""
    digest = hashlib.sha256()
    for name in sorted(map(str, dataset.variables)):
        variable = dataset.variables[name]
        heading = [name, name in dataset.coords, variable.dims, variable.shape]
        digest.update(json.dumps([*heading, _plain(variable.attrs)]).encode())
        values = variable.values
        if values.dtype.kind == "f":  # which of the many NaN is no content
            values = np.where(np.isnan(values), np.nan, values)
        if values.dtype.kind in "fiub":
            digest.update(values.dtype.str.encode() + values.tobytes())
        else:
            digest.update(json.dumps(values.tolist()).encode())
    digest.update(json.dumps(_plain(dataset.attrs)).encode())
    return digest.hexdigest()


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
        "seed": ("seed", np.asarray(seeds, np.int64), attributes("1", "random seed")),
        "epoch": epoch_coord(num_epochs),
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
        scalars: names of MEASUREMENT_SCALARS; what is left out becomes NaN.
        epoch_time: one row per method, one column per repeat.

    Raises:
        ValueError: if a name is unknown, a shape does not fit, or the specs are not of
            one graph and model.
    """
    _refuse_unknown(scalars, MEASUREMENT_SCALARS, "scalars")
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
        for name, meaning in MEASUREMENT_SCALARS.items()
    }
    variables["epoch_time"] = _variable(
        {"epoch_time": epoch_time},
        "epoch_time",
        EPOCH_TIME,
        {"method": num_methods, "repeat": num_repeats},
    )
    names = [spec["method"]["name"] for spec in specs]
    coords = {
        "method": text_coord("method", names, "method"),
        "repeat": (
            "repeat",
            np.arange(num_repeats, dtype=np.int64),
            attributes("1", "repeat"),
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
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": package_versions(),
        "device": device,
        "threads": threads,
        "source_digest": source_digest,
    }


def text_coord(dim: str, texts: Sequence[str], long_name: str) -> tuple[Any, ...]:
    """Texts along a dimension, as xarray takes a coordinate."""
    return dim, np.asarray(texts, dtype=str), attributes("1", long_name)


def epoch_coord(num_epochs: int) -> tuple[Any, ...]:
    """Epochs counted from 1, as xarray takes a coordinate."""
    epochs = np.arange(1, num_epochs + 1, dtype=np.int64)
    return "epoch", epochs, attributes("1", "training epoch")


def attributes(units: str, long_name: str) -> dict[str, str]:
    """The attributes that every variable has."""
    return {"units": units, "long_name": long_name}


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
    return tuple(sizes), np.broadcast_to(given, shape).copy(), attributes(*meaning)


def _refuse_unknown(
    given: Mapping[str, Any], known: Mapping[str, Any], what: str
) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{what} must be among {list(known)}, got {unknown}")


def _plain(attrs: Mapping[Any, Any]) -> dict[str, list[Any]]:
    """Attributes as lists: a file does not tell one number from a list of one."""
    return {str(name): np.ravel(attrs[name]).tolist() for name in sorted(attrs)}


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
