"""The collected dataset holds every record, in order, and nothing else."""

import json
import re

import numpy as np
import pytest
import xarray as xr
from made_up_records import made_up_benchmark, made_up_spec, write_made_up

from pipeline_src.collecting.runs import collect_runs
from pipeline_src.records.datasets import (
    measurement_record,
    read_dataset,
    run_record,
    write_dataset,
)
from pipeline_src.training.spec import params_of


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
        "measurement_technique": ["eager"] * 2,
        "measurement_without": [""] * 2,
        "measurement_num_layers": [2, 2],
        "measurement_hidden": [64, 64],
        "measurement_num_nodes": [np.nan, np.nan],  # digits: counted once it is read
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


def test_labels_are_given_where_records_meet(tmp_path):
    """So that a new label trains nothing again; without one, the record's own holds."""
    runs, measurements = write_made_up(tmp_path)
    collected = collect_runs(runs, measurements, {"fp32": "full precision"})
    plain = collect_runs(runs, measurements)
    for prefix in ("", "measurement_"):
        labels = dict(
            zip(
                collected[f"{prefix}method"].values,
                collected[f"{prefix}label"].values,
                strict=True,
            )
        )
        assert labels.pop("fp32") == "full precision"
        assert set(labels.values()) < set(plain[f"{prefix}label"].values)
        specs = map(json.loads, collected[f"{prefix}spec"].values)
        assert "full precision" in {spec["method"]["label"] for spec in specs}


def test_records_of_another_configuration_are_refused(tmp_path):
    """As a job leaves them that outlived its killed workflow."""
    runs, measurements = write_made_up(tmp_path)
    asked = {}
    for path in (*runs, *measurements):
        attrs = read_dataset(path).attrs
        specs = json.loads(attrs.get("specs") or f"[{attrs['spec']}]")
        for spec in specs:  # what does not decide a record may differ
            spec |= {"device": "elsewhere", "compile": "never"}
            spec["method"]["label"] = "renamed"
        asked[path.stem] = [params_of(spec) for spec in specs]
    expected = collect_runs(runs, measurements)
    xr.testing.assert_identical(collect_runs(runs, measurements, None, asked), expected)
    other = json.loads(asked[runs[1].stem][0])
    other["training"]["epochs"] = 77
    asked[runs[1].stem] = [json.dumps(other)]
    del asked[measurements[0].stem][-1]
    with pytest.raises(ValueError, match="another configuration") as refusal:
        collect_runs(runs, measurements, None, asked)
    lines = str(refusal.value).splitlines()
    assert len(lines) == 4
    assert re.fullmatch(
        rf"{runs[1]}: training.epochs is \d+, 77 is asked for", lines[1]
    )
    most = len(asked[measurements[0].stem])
    assert lines[2] == (f"{measurements[0]}: {most + 1} methods, {most} are asked for")
    assert lines[3].endswith(f"rm {runs[1]} {measurements[0]}")


@pytest.mark.parametrize("kind", ["runs only", "measurements only"])
def test_a_configuration_may_lack_runs_or_measurements(tmp_path, kind):
    runs, measurements = write_made_up(tmp_path)
    some = (runs, []) if kind == "runs only" else ([], measurements)
    collected = collect_runs(*some)
    write_dataset(collected, tmp_path / "runs.nc")
    xr.testing.assert_identical(read_dataset(tmp_path / "runs.nc"), collected)
    assert collected.sizes["run"] == (12 if kind == "runs only" else 0)


def test_names_in_a_record_are_text_and_no_paths(tmp_path):
    """A record from elsewhere that calls its graph and method after files outside."""
    folder = tmp_path / "in" / "ner"
    spec = made_up_spec("fp32", graph="../../outside", seeds=[0])
    spec["method"]["name"] = "/outside"
    record = run_record(json.dumps(spec), {}, [0], {"test_accuracy": 0.5}, {})
    write_dataset(record, folder / "record.nc")
    collected = collect_runs([folder / "record.nc"])
    write_dataset(collected, folder / "runs.nc")
    assert collected["graph"].values.tolist() == ["../../outside"]
    files = {path.name for path in tmp_path.rglob("*")}
    assert files == {"in", "ner", "record.nc", "runs.nc"}


def test_known_sizes_and_lists_stand_beside_what_was_measured(tmp_path):
    record = made_up_benchmark(methods=("lean2", "lean2-no-resident-input"))
    write_dataset(record, tmp_path / "m.nc")
    collected = collect_runs([], [tmp_path / "m.nc"])
    assert collected["measurement_num_nodes"].values.tolist() == [169_343.0] * 2
    assert collected["measurement_num_features"].values.tolist() == [128.0] * 2
    assert collected["measurement_without"].values.tolist() == ["", "resident_input"]


def test_every_variable_has_a_unit_and_a_name(tmp_path):
    for name, variable in collect_runs(*write_made_up(tmp_path)).variables.items():
        assert {"units", "long_name"} <= set(variable.attrs), name
