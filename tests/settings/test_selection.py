"""Settings are judged by short trainings, and what is chosen is measured anew."""

import json
from dataclasses import replace

import numpy as np
import pytest
from made_up_searches import GRAPH, SEARCH

from pipeline_src.collecting.settings import collect_settings
from pipeline_src.records.datasets import read_dataset, write_dataset
from pipeline_src.report.drawing.rendering import render
from pipeline_src.report.figures.settings import plot_setting_front
from pipeline_src.report.tables.settings import setting_search_table, setting_table
from pipeline_src.settings import evaluation
from pipeline_src.settings.choice import choose_settings
from pipeline_src.settings.evaluation import (
    evaluate_settings,
    start_search,
)
from pipeline_src.settings.measurement import measure_settings
from pipeline_src.settings.rounds import propose_round
from pipeline_src.settings.space import all_settings, waiting_settings
from pipeline_src.training.job import Job
from pipeline_src.training.runs import train_run
from pipeline_src.training.spec import MethodSpec

TWO = all_settings(SEARCH)[::40]
LEAN = MethodSpec("lean", "lean INT2", "lean", 2, 1, 8)
FRESH = replace(SEARCH.run, seeds=(0, 1))
PERMISSIVE = replace(SEARCH, max_drop=90.0, strategies=("uniform",))


class LostMachineError(Exception):
    """Kills a search."""


@pytest.fixture(scope="module")
def start():
    return start_search(PERMISSIVE, Job(GRAPH))


@pytest.fixture(scope="module")
def selection(start):
    """After one round."""
    first = propose_round(start)
    return choose_settings(
        start,
        first,
        [evaluate_settings(PERMISSIVE, waiting_settings(first), Job(GRAPH))],
    )


@pytest.fixture(scope="module")
def measured(selection):
    return measure_settings(FRESH, [LEAN], selection, Job(GRAPH))


def test_a_setting_is_judged_by_the_trainings_of_its_method(start):
    """The same numbers as a run of the workflow reports, best validation epoch."""
    accuracy = evaluate_settings(SEARCH, TWO, Job(GRAPH))["accuracy"]
    for setting, row in zip(TWO, accuracy.values, strict=True):
        method = evaluation.method_of(SEARCH, setting)
        run = train_run(replace(SEARCH.run, method=method), Job(GRAPH))
        assert row.tolist() == run["validation_accuracy"].values.tolist()
    full = train_run(SEARCH.run, Job(GRAPH))["validation_accuracy"].values
    assert start["full_accuracy"].values.tolist() == full.tolist()
    assert start.attrs["baseline"] == full.mean()


def test_a_killed_evaluation_trains_nothing_twice(tmp_path, monkeypatch):
    """Seed by seed: of four trainings the third is lost, and two are left to do."""
    expected = evaluate_settings(SEARCH, TWO, Job(GRAPH))
    trained, plain = [], evaluation.train_seed

    def once(trainer):
        if len(trained) == killed_at:
            raise LostMachineError
        trained.append((trainer.spec.method.name, trainer.seed))
        return plain(trainer)

    monkeypatch.setattr(evaluation, "train_seed", once)
    killed_at = 2
    with pytest.raises(LostMachineError):
        evaluate_settings(SEARCH, TWO, Job(GRAPH, partial_dir=tmp_path))
    killed_at = -1
    again = evaluate_settings(SEARCH, TWO, Job(GRAPH, partial_dir=tmp_path))
    assert len(trained) == len(set(trained)) == 2 * len(TWO) == 4
    assert again.identical(expected)


def test_a_training_that_diverges_is_the_worst_and_ends_no_search(monkeypatch):
    def diverge(trainer):
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(evaluation, "train_seed", diverge)
    accuracy = evaluate_settings(SEARCH, TWO[:1], Job(GRAPH))["accuracy"]
    assert accuracy.values.tolist() == [[0.0, 0.0]]
    with pytest.raises(FloatingPointError, match="full precision diverged"):
        start_search(SEARCH, Job(GRAPH))


def test_test_labels_do_not_reach_the_selection():
    labels = GRAPH.labels.clone()
    labels[GRAPH.test_index] = (labels[GRAPH.test_index] + 1) % GRAPH.num_classes
    other = replace(GRAPH, labels=labels)
    expected = evaluate_settings(SEARCH, TWO[:1], Job(GRAPH))
    assert evaluate_settings(SEARCH, TWO[:1], Job(other)).identical(expected)


def test_what_is_chosen_is_measured_beside_full_precision(measured, selection):
    """One training of each method: two questions have one answer here."""
    names = ["FP32", "ABS within 90.0 points", "ABS within 0.02 MiB", "lean INT2"]
    assert measured["method"].values.tolist() == names
    for name, method in (("FP32", FRESH.method), ("lean INT2", LEAN)):
        row = measured.isel(method=names.index(name))
        run = train_run(replace(FRESH, method=method), Job(GRAPH))
        for variable in measured.data_vars:
            assert row[variable].values.tolist() == run[variable].values.tolist()
    for aim in SEARCH.aims:
        asked = (selection["answer_aim"] == aim).values
        (row,) = np.flatnonzero(asked & (selection["answer_strategy"] == "surrogate"))
        answer = selection.isel(answer=row)
        at = 1 + list(SEARCH.aims).index(aim)
        saved = measured["saved_memory"].isel(method=at).values
        assert set(saved) == {float(answer["answer_memory"])}
        text = str(measured["spec"].values[at])
        assert json.loads(text) == json.loads(str(answer["answer_method"].values))


def test_methods_keep_their_finished_seeds_apart(selection, measured, tmp_path):
    """And find them again: a second call trains nothing, and says the same."""
    job = Job(GRAPH, partial_dir=tmp_path)
    for _ in range(2):
        again = measure_settings(FRESH, [LEAN], selection, job)
        assert again.drop_attrs().identical(measured.drop_attrs())
    trained = len(set(measured["setting"].values.tolist()))
    assert len(list(tmp_path.rglob("seed*.nc"))) == trained * len(FRESH.seeds)


def test_what_is_measured_never_chose(selection):
    run = replace(SEARCH.run, seeds=(999, 1000))
    with pytest.raises(ValueError, match=r"fresh, but settings were chosen on \{1000"):
        measure_settings(run, [], selection, Job(GRAPH))


def test_tables_and_figure_say_what_was_measured(selection, measured, tmp_path):
    write_dataset(selection, tmp_path / "selection.nc")
    write_dataset(measured, tmp_path / "measured.nc")
    settings = collect_settings([tmp_path / "selection.nc"], [tmp_path / "measured.nc"])
    write_dataset(settings, tmp_path / "settings.nc")
    settings = read_dataset(tmp_path / "settings.nc")
    for name, variable in settings.variables.items():
        assert {"units", "long_name"} <= set(variable.attrs), name
    rows = setting_table(settings).values.set_index("method")
    assert rows.index.tolist() == measured["method"].values.tolist()
    for at, name in enumerate(rows.index):
        accuracy = 100 * measured["test_accuracy"].values
        assert rows["test_accuracy"][name] == pytest.approx(accuracy[at].mean())
        difference = (accuracy[at] - accuracy[0]).mean()
        assert rows["difference"][name] == pytest.approx(difference)
        saved = measured["saved_memory"].values[at, 0] / 2**20
        assert rows["saved_mib"][name] == pytest.approx(saved)
    answers = setting_search_table(settings)
    assert answers.shown["within"].tolist() == 2 * ["90 points"] + 2 * ["0.02 MiB"]
    assert answers.shown["strategy"].tolist() == 2 * ["ABS", "uniform"]
    ratio = selection.attrs["full_memory"] / selection["answer_memory"].values
    assert answers.values["memory_ratio"].tolist() == pytest.approx(ratio)
    figure = plot_setting_front(settings)
    assert len(figure.data) == selection.sizes["evaluation"]
    assert render(figure, "png")[:4] == b"\x89PNG"
