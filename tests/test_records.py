"""Records come back as they were written, whole or not at all."""

import json
import os

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_up_records import (
    made_up_boundaries,
    made_up_measurement,
    made_up_provenance,
    made_up_run,
    made_up_spec,
    write_made_up,
)

from pipeline_src.experiment import records
from pipeline_src.experiment.records import (
    collect_runs,
    measurement_record,
    read_boundaries,
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


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.nc does not exist"):
        read_dataset(tmp_path / "gone.nc")


@pytest.fixture
def boundaries_of(tmp_path):
    write_dataset(made_up_boundaries(), tmp_path / "boundaries.nc")
    return read_boundaries(tmp_path / "boundaries.nc")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(("asked", "tabulated"), [(32, 32), (900, 1024), (9999, 4096)])
def test_boundaries_are_those_of_the_nearest_tabulated_size(
    boundaries_of, bits, asked, tabulated
):
    table = made_up_boundaries()["boundaries"].sel(bits=bits, block_size=tabulated)
    expected = tuple(float(value) for value in table.values[: 2**bits])
    assert boundaries_of(bits, asked) == expected


@pytest.mark.parametrize("block_size", [1, 3])
def test_boundaries_of_tiny_blocks_are_even(boundaries_of, block_size):
    assert boundaries_of(2, block_size) == (0.0, 1.0, 2.0, 3.0)


def test_bits_outside_the_table_are_refused(boundaries_of):
    with pytest.raises(ValueError, match=r"one of \[1, 2, 4, 8\], got 3"):
        boundaries_of(3, 32)


def test_every_variable_has_a_unit_and_a_name(tmp_path):
    """In the records and in the collected dataset."""
    collected = collect_runs(*write_made_up(tmp_path))
    for dataset in (made_up_run(made_up_spec()), made_up_measurement(), collected):
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


def test_the_collected_dataset_is_the_hand_written_one(tmp_path):
    """Two cells of unequal length: runs in order, the shorter curve ends in NaN."""
    short = made_up_spec("fp32", seeds=[0, 1], epochs=2)
    long = made_up_spec("block4", seeds=[5], epochs=3)
    curve = {"loss_curve": [[3.0, 2.0], [4.0, 3.0]]}
    first = run_record(
        json.dumps(short),
        {"device": "cpu"},
        [0, 1],
        {"test_accuracy": [0.5, 0.6]},
        curve,
    )
    curve = {"loss_curve": [[9.0, 8.0, 7.0]]}
    second = run_record(
        json.dumps(long), {"device": "cuda"}, [5], {"test_accuracy": 0.7}, curve
    )
    specs = [json.dumps(short), json.dumps(long)]
    times = [[1.0, 2.0], [np.nan, np.nan]]
    measured = measurement_record(specs, {}, {"saved_memory": [100.0, 10.0]}, times)
    paths = []
    for name, record in {"a": first, "b": second, "c": measured}.items():
        write_dataset(record, tmp_path / f"{name}.nc")
        paths.append(tmp_path / f"{name}.nc")

    collected = collect_runs(paths[:2], paths[2:])
    nan = np.nan
    expected = {
        "test_accuracy": [0.5, 0.6, 0.7],
        "saved_memory": [nan, nan, nan],
        "loss_curve": [[3.0, 2.0, nan], [4.0, 3.0, nan], [9.0, 8.0, 7.0]],
        "method": ["fp32", "fp32", "block4"],
        "label": ["FP32", "FP32", "G/R = 4"],
        "graph": ["digits"] * 3,
        "model": ["sage-2x64"] * 3,
        "layer": ["sage"] * 3,
        "policy": ["full", "full", "exact"],
        "bits": [32, 32, 2],
        "projection_ratio": [1, 1, 8],
        "rows_per_block": [1, 1, 4],
        "boundaries": ["even"] * 3,
        "seed": [0, 1, 5],
        "epoch": [1, 2, 3],
        "provenance": ['{"device": "cpu"}'] * 2 + ['{"device": "cuda"}'],
        "measured_saved_memory": [100.0, 10.0],
        "measured_epoch_time": times,
        "measurement_method": ["fp32", "block4"],
        "measurement_bits": [32, 2],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(collected[name].values, values, err_msg=name)
    assert [json.loads(text) for text in collected["spec"].values] == [
        short,
        short,
        long,
    ]
    assert dict(collected.sizes) == {
        "run": 3,
        "epoch": 3,
        "measurement": 2,
        "repeat": 2,
    }
    write_dataset(collected, tmp_path / "runs.nc")
    xr.testing.assert_identical(read_dataset(tmp_path / "runs.nc"), collected)


@pytest.mark.parametrize("kind", ["runs only", "measurements only"])
def test_a_configuration_may_lack_runs_or_measurements(tmp_path, kind):
    runs, measurements = write_made_up(tmp_path)
    some = (runs, []) if kind == "runs only" else ([], measurements)
    collected = collect_runs(*some)
    write_dataset(collected, tmp_path / "runs.nc")
    xr.testing.assert_identical(read_dataset(tmp_path / "runs.nc"), collected)
    assert collected.sizes["run"] == (12 if kind == "runs only" else 0)


def test_provenance_is_the_same_every_time_and_names_no_place():
    """No date, no host, no path: a record depends on the work alone."""
    text = json.dumps(made_up_provenance())
    assert text == json.dumps(made_up_provenance())
    assert os.getcwd() not in text
    assert records.platform.node() not in text
    assert {"versions", "device", "source_digest", "threads"} <= set(json.loads(text))
