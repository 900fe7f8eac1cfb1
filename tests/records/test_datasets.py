"""Records come back as they were written, whole or not at all."""

import importlib.metadata
import json
import os

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_up_records import (
    made_up_measurement,
    made_up_provenance,
    made_up_run,
    made_up_spec,
)

from pipeline_src.records import datasets
from pipeline_src.records.datasets import (
    content_checksum,
    measurement_record,
    read_dataset,
    run_record,
    write_dataset,
)


@given(
    values=hnp.arrays(np.float64, hnp.array_shapes(max_dims=1), elements=st.floats()),
    counts=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4),
    text=st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"])),
)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_reading_returns_what_was_written(tmp_path, values, counts, text):
    """Every float (NaN and infinities too), integer and text survives the file."""
    dataset = xr.Dataset(
        {"value": ("x", values, {"units": "byte", "long_name": text})},
        {"count": ("y", np.array(counts))},
        {"spec": json.dumps({"text": text})},
    )
    write_dataset(dataset, tmp_path / "any.nc")
    xr.testing.assert_identical(read_dataset(tmp_path / "any.nc"), dataset)


def test_seconds_stay_numbers(tmp_path):
    """A variable in seconds comes back as float64, not as a time difference."""
    write_dataset(made_up_run(made_up_spec()), tmp_path / "run.nc")
    assert read_dataset(tmp_path / "run.nc")["epoch_time"].dtype == np.float64


def test_equal_datasets_give_equal_bytes(tmp_path):
    """Also when one of them was read from a file, or brings an encoding of its own."""
    write_dataset(made_up_run(made_up_spec()), tmp_path / "one.nc")
    write_dataset(made_up_run(made_up_spec()), tmp_path / "two.nc")
    write_dataset(read_dataset(tmp_path / "one.nc"), tmp_path / "three.nc")
    foreign = made_up_run(made_up_spec())
    foreign.encoding = {"unlimited_dims": {"seed"}}
    write_dataset(foreign, tmp_path / "four.nc")
    content = (tmp_path / "one.nc").read_bytes()
    assert (tmp_path / "two.nc").read_bytes() == content
    assert (tmp_path / "three.nc").read_bytes() == content
    assert (tmp_path / "four.nc").read_bytes() == content


@pytest.mark.parametrize("failing", ["to_netcdf", "replace"])
def test_a_failing_write_leaves_the_old_file_and_no_other(
    tmp_path, monkeypatch, failing
):
    """Whether writing or renaming fails: the old record stays, the half one goes."""
    path = tmp_path / "run.nc"
    write_dataset(made_up_run(made_up_spec()), path)
    before = path.read_bytes()

    def fail(*_args, **_options):
        next(tmp_path.glob(".run.nc.*"), path).touch()
        raise OSError("no space left on device")

    def write_half_and_fail(_dataset, target, **_options):
        target.write_bytes(b"half")
        fail()

    if failing == "to_netcdf":
        monkeypatch.setattr(xr.Dataset, "to_netcdf", write_half_and_fail)
    else:
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_dataset(made_up_run(made_up_spec("fp32")), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign"])
def test_a_damaged_file_is_refused_by_name_with_a_remedy(tmp_path, damage):
    """Cut short, one bit flipped in the data, or no NetCDF at all."""
    path = tmp_path / "run.nc"
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, 20_000, dtype=np.uint8)  # does not compress
    write_dataset(xr.Dataset({"value": ("x", noise)}), path)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content = bytearray(b"not a NetCDF file")
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"run\.nc is not a readable.*delete it and run"):
        read_dataset(path)


def other_datasets(dataset):
    """The same but for one thing each."""
    yield dataset.assign_attrs(spec="b")
    yield dataset.assign_attrs(more="a")
    yield dataset.rename(x="y")
    yield dataset.rename(i="j")
    yield dataset.set_coords("x")
    yield dataset.isel(i=slice(2))
    yield dataset.astype(np.float32)
    for attrs in ({"units": "byte"}, {}):
        yield dataset.assign(x=("i", dataset["x"].values, attrs))
    yield dataset.assign(x=("i", np.nextafter(dataset["x"].values, 9), {"units": "s"}))


def test_the_checksum_knows_every_part_of_a_dataset():
    dataset = xr.Dataset(
        {"x": ("i", [0.5, 1.0, 2.0], {"units": "s"})}, attrs={"spec": "a"}
    )
    others = list(other_datasets(dataset))
    checksums = {content_checksum(one) for one in (dataset, *others)}
    assert len(checksums) == 1 + len(others)
    assert content_checksum(dataset.copy(deep=True)) == content_checksum(dataset)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.nc does not exist"):
        read_dataset(tmp_path / "gone.nc")


def test_every_variable_has_a_unit_and_a_name():
    for dataset in (made_up_run(made_up_spec()), made_up_measurement()):
        for name, variable in dataset.variables.items():
            assert {"units", "long_name"} <= set(variable.attrs), name


def test_what_was_not_measured_is_nan():
    record = run_record("{}", {}, [0, 1], {"test_accuracy": [0.5, 0.75]}, {})
    assert record["test_accuracy"].values.tolist() == [0.5, 0.75]
    assert np.isnan(record["peak_memory"].values).all()


def test_unknown_names_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"scalars must be among.*got \['accuracy'\]"):
        run_record("{}", {}, [0], {"accuracy": 1.0}, {})
    with pytest.raises(ValueError, match=r"test_accuracy must have.*got \(3,\)"):
        run_record("{}", {}, [0, 1], {"test_accuracy": [1, 2, 3]}, {})
    texts = [json.dumps(made_up_spec(graph=graph)) for graph in ("digits", "cora")]
    with pytest.raises(ValueError, match="must share one graph and one model"):
        measurement_record(texts, {}, {}, np.ones((2, 3)))


def test_provenance_is_the_same_every_time_and_names_no_place():
    """No date, no host, no path: a record depends on the work alone."""
    text = json.dumps(made_up_provenance())
    assert text == json.dumps(made_up_provenance())
    assert os.getcwd() not in text
    assert datasets.platform.node() not in text
    assert {"versions", "device", "source_digest", "threads"} <= set(json.loads(text))


@pytest.mark.parametrize(
    "package", ["torch", "numpy", "scipy", "pandas", "xarray", "netCDF4", "snakemake"]
)
def test_provenance_names_the_version_of_each_package(package):
    version = importlib.metadata.version(package)
    assert made_up_provenance()["versions"][package] == version
