"""Every kind of impossible result is planted once, and found."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from made_up_records import (
    METHODS,
    MIB,
    made_up_benchmark,
    made_up_collection,
)
from scipy import stats

from pipeline_src.collecting.checks import (
    block_size_slack,
    chance_bound,
    check_results,
    describe_checks,
)
from pipeline_src.collecting.runs import collect_runs
from pipeline_src.records.datasets import write_dataset

SCRIPT = (
    Path(__file__).resolve().parents[2] / "workflow" / "scripts" / "check_results.py"
)


@pytest.fixture
def sound(tmp_path):
    return made_up_collection(tmp_path, methods=METHODS)


def test_sound_results_pass(sound):
    assert check_results(sound) == []
    assert check_results(sound.isel(measurement=[])) == []
    assert check_results(sound.isel(run=[])) == []
    backwards = slice(None, None, -1)  # the largest blocks first
    assert check_results(sound.isel(measurement=backwards, run=backwards)) == []


def test_rivals_and_variants_may_keep_what_they_keep(tmp_path):
    """PyG keeps more than FP32, a variant more than its full layout: no fault."""
    paths = [tmp_path / "all.nc", tmp_path / "fewer.nc"]
    write_dataset(made_up_benchmark(), paths[0])
    fewer = made_up_benchmark("flickr_shape", "sage-2x256").isel(repeat=slice(3))
    write_dataset(fewer, paths[1])
    assert check_results(collect_runs([], paths)) == []


def row(dataset, method, seed=1):
    """Place of a run among the runs."""
    is_it = (dataset["method"] == method) & (dataset["seed"] == seed)
    return int(np.flatnonzero(is_it.values)[0])


def plant_chance(sound):
    sound["test_accuracy"][row(sound, "exact")] = 0.13
    return ["digits sage-2x64 exact seed 1", "0.1300 is at chance", "0.1020 of 540"]


def plant_more_than_all_right(sound):
    sound["test_accuracy"][row(sound, "exact")] = 92.0
    return ["digits sage-2x64 exact seed 1", "92.0 is above 1"]


def plant_nan(sound):
    sound["saved_memory"][row(sound, "block2")] = np.nan
    return ["digits sage-2x64 block2 seed 1: saved_memory is nan"]


def plant_infinite_loss(sound):
    sound["loss_curve"][row(sound, "block2"), 3] = np.inf
    return ["block2 seed 1: loss_curve lacks a finite value in 1 of 20 epochs"]


def plant_stopped_curve(sound):
    """A run that stops early, beside longer ones that pad the axis."""
    sound["test_accuracy_curve"][row(sound, "fp32"), 15:] = np.nan
    return ["fp32 seed 1: test_accuracy_curve lacks", "5 of 20 epochs"]


def plant_rising_memory(sound):
    sound["measured_saved_memory"][5] = 26.2 * MIB  # G/R = 16, after 25.95
    return ["arxiv_shape sage-3x128", "memory rises", "block8", "block16"]


def plant_constant_memory(sound):
    sound["measured_saved_memory"][1:] = 30.47 * MIB
    return ["memory does not fall from exact (1 rows", "to block64 (64 rows"]


def plant_above_fp32(sound):
    sound["measured_saved_memory"][0] = 30.0 * MIB
    return ["exact keeps 31950111 bytes", "31457280 bytes of FP32 (fp32)"]


def plant_unmeasured(sound):
    sound["measured_saved_memory"][2] = np.nan
    return ["arxiv_shape sage-3x128 block2 measured alone: saved_memory is nan"]


def plant_half_timed(sound):
    sound["measured_epoch_time"][1, 3] = np.nan
    return ["exact measured alone: 4 of 5 repeats have an epoch time"]


@pytest.mark.parametrize(
    "plant",
    [value for name, value in list(globals().items()) if name.startswith("plant_")],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_fault_is_named(sound, plant):
    """The sentences give the place and the values; a sound twin has none."""
    expected = plant(sound)
    problems = check_results(sound)
    assert problems
    assert any(all(part in problem for part in expected) for problem in problems), (
        problems
    )
    assert all(problem.endswith(".") for problem in problems)


def test_missing_and_repeated_seeds_are_named(sound):
    missing = sound.drop_isel(run=[row(sound, "exact", seed=2)])
    assert check_results(missing) == [
        "digits sage-2x64 exact: 1 of 3 seeds have no run: [2]."
    ]
    repeated = sound.copy(deep=True)
    repeated["seed"][row(sound, "exact", seed=2)] = 0
    assert any(
        "seeds [0] have several runs" in text for text in check_results(repeated)
    )


def test_memory_in_training_is_checked_too(sound):
    sound["saved_memory"][:] = sound["saved_memory"].values[::-1]
    assert any("digits sage-2x64 in training" in text for text in check_results(sound))


def test_padding_of_a_small_graph_is_no_fault(sound):
    """A rise within the slack passes, one byte more does not."""
    spec = json.loads(sound["measurement_spec"].values[7])
    before = sound["measured_saved_memory"].values[6]
    sound["measured_saved_memory"][7] = before + block_size_slack(spec)
    assert check_results(sound) == []
    sound["measured_saved_memory"][7] += 1
    assert any("memory rises" in problem for problem in check_results(sound))


@pytest.mark.parametrize(("largest_block", "num_problems"), [(16, 0), (17, 1)])
def test_memory_must_fall_only_where_blocks_may_grow(
    sound, largest_block, num_problems
):
    """A row is 16 projected values: a cap at 16 lets no block hold a second one."""
    specs = [json.loads(text) for text in sound["measurement_spec"].values]
    for spec in specs:
        spec["method"]["max_block_size"] = largest_block
    texts = np.asarray([json.dumps(spec) for spec in specs])
    sound = sound.assign_coords(measurement_spec=("measurement", texts))
    plant_constant_memory(sound)
    assert len(check_results(sound)) == num_problems


def test_memory_must_fall_only_where_it_can_be_seen(sound):
    """Slack of one percent may hide the fall; of less, it may not."""
    slack = block_size_slack(json.loads(sound["measurement_spec"].values[1]))
    sound["measured_saved_memory"][1:] = 100 * slack
    assert check_results(sound) == []
    sound["measured_saved_memory"][1:] = 100 * slack + 1
    (problem,) = check_results(sound)
    assert "memory does not fall" in problem


def test_boundaries_do_not_change_the_order_of_memory(sound):
    """G/R = 64 + VM is compared with its own kind only."""
    sound["measured_saved_memory"][8] = 29 * MIB
    assert check_results(sound) == []


@pytest.mark.parametrize(("share", "nodes"), [(0.1, 540), (0.3, 1000), (0.9, 50)])
def test_guessing_passes_the_bound_once_in_a_million_at_most(share, nodes):
    """Exactly: P(accuracy of a guess > bound) <= 1e-6, and the next lower one fails."""
    right = round(chance_bound(share, nodes) * nodes)
    law = stats.binom(nodes, share)
    assert law.sf(right) <= 1e-6 < law.sf(right - 1)


def test_what_was_checked_is_listed(sound):
    text = describe_checks(sound)
    assert len(text.splitlines()) == 7
    assert "27 runs" in text
    assert "9 measurements" in text
    assert "made by the same versions of Python and packages" in text


def test_doubts_about_splits_stand_in_the_list_and_fail_nothing(sound):
    """Nobody does better than always where all test nodes are of one class."""
    doubt = "flickr: all 9 nodes of test_index are of one class"
    made_by = json.loads(str(sound["provenance"].values[0])) | {"doubts": [doubt]}
    sound["provenance"] = "run", [json.dumps(made_by)] * sound.sizes["run"]
    sound["chance_accuracy"][:] = 1.0
    sound["test_accuracy"][:] = 1.0
    assert check_results(sound) == []
    assert describe_checks(sound).count(f"WARNING: {doubt}") == 1


def test_records_of_different_versions_are_told_apart(sound, tmp_path, capsys):
    """Nothing else notices an updated package; the results may still be right."""
    made_by = [json.loads(text) for text in sound["provenance"].values]
    for record in made_by:
        record["versions"] = {"torch": "2.13.0", "numpy": "2.4.6"}
    for record in made_by[:3]:
        record["versions"] = {"torch": "2.11.0", "numpy": "2.4.6"}
    texts = np.asarray([json.dumps(record) for record in made_by])
    several = sound.isel(measurement=[]).assign_coords(provenance=("run", texts))
    assert "torch 2.11.0 (3), 2.13.0 (24); to make all" in describe_checks(several)
    assert "numpy" not in describe_checks(several)
    write_dataset(several, tmp_path / "runs.nc")
    runpy.run_path(str(SCRIPT))["main"](tmp_path / "runs.nc", tmp_path / "checks.txt")
    assert "different versions: torch 2.11.0 (3), 2.13.0" in capsys.readouterr().err


def test_versions_of_measurements_count_beside_those_of_runs(sound):
    """A benchmark made by another torch is in the same tables."""
    names = {"provenance": "run", "measurement_provenance": "measurement"}
    for (name, dim), torch in zip(names.items(), ("2.13.0", "2.11.0"), strict=True):
        made_by = [json.loads(text) for text in sound[name].values]
        for record in made_by:
            record["versions"] = {"torch": torch}
        texts = np.asarray([json.dumps(record) for record in made_by])
        sound = sound.assign_coords({name: (dim, texts)})
    assert "torch 2.11.0 (9), 2.13.0 (27)" in describe_checks(sound)


def test_the_script_fails_on_a_problem_and_writes_nothing(sound, tmp_path):
    main = runpy.run_path(str(SCRIPT))["main"]
    report = tmp_path / "checks.txt"
    write_dataset(sound, tmp_path / "sound.nc")
    main(tmp_path / "sound.nc", report)
    assert report.read_text(encoding="utf-8") == describe_checks(sound) + "\n"
    report.unlink()
    plant_above_fp32(sound)
    write_dataset(sound, tmp_path / "bad.nc")
    with pytest.raises(SystemExit, match="impossible result"):
        main(tmp_path / "bad.nc", report)
    assert not report.exists()
