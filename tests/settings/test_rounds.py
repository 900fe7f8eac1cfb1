"""Rounds by files are the search in one process, whatever jobs measure what."""

import json

import pytest
import xarray as xr
from made_up_searches import (
    GRAPH,
    SEARCH,
    made_up_accuracy,
    made_up_evaluations,
    with_aims,
)

from pipeline_src.records.datasets import read_dataset, write_dataset
from pipeline_src.search.bits import search_bits
from pipeline_src.settings.choice import choose_settings
from pipeline_src.settings.evaluation import start_search
from pipeline_src.settings.rounds import measured_results, propose_round
from pipeline_src.settings.space import (
    all_settings,
    method_of,
    search_space,
    setting_text,
    waiting_settings,
)
from pipeline_src.training.job import Job

ROUNDS = 3


@pytest.fixture(scope="module")
def start():
    """With a baseline that the made-up accuracies can be compared with."""
    return start_search(SEARCH, Job(GRAPH)).assign_attrs(baseline=0.895)


def in_parts(settings, size):
    return [
        made_up_evaluations(SEARCH, settings[first : first + size])
        for first in range(0, max(len(settings), 1), size)
    ]


def in_rounds(start, rounds, size, folder):
    """Every round as its jobs would make it, through files; all rounds, and parts."""
    made, parts = [], []
    for number in range(rounds):
        round_ = propose_round(start, made[-1] if made else None, parts)
        path = folder / f"{number}.nc"
        write_dataset(round_, path)
        made.append(read_dataset(path))
        parts = in_parts(waiting_settings(made[-1]), size)
    return made, parts


@pytest.fixture(scope="module")
def searched(start, tmp_path_factory):
    """All rounds with parts of one setting, and the last round's evaluations."""
    return in_rounds(start, ROUNDS, 1, tmp_path_factory.mktemp("rounds"))


def test_rounds_of_jobs_give_the_archives_of_one_process(start, searched):
    made, parts = searched
    results = measured_results(start, made[-1], parts)
    texts, values = start["setting"].values.tolist(), start["memory"].values.tolist()
    memory = dict(zip(texts, values, strict=True))
    space = search_space(SEARCH, GRAPH.num_nodes, memory)
    assert list(results) == list(SEARCH.members)
    for name, (strategy, aim) in SEARCH.members.items():
        alone = search_bits(
            space,
            made_up_accuracy,
            results[name].archive.sizes["evaluation"],
            baseline=0.895,
            seed=0,
            strategy=strategy,
            round_size=SEARCH.round_size,
            **{aim: SEARCH.aims[aim]},
        )
        xr.testing.assert_identical(results[name].archive, alone.archive)
    assert results["random"].archive.sizes["evaluation"] == ROUNDS * SEARCH.round_size


def test_nothing_is_measured_twice_whoever_asks(searched):
    """All searches begin at the same uniform settings, which are trained once."""
    made, _ = searched
    asked = [setting_text(one) for round_ in made for one in waiting_settings(round_)]
    assert len(asked) == len(set(asked))
    proposals = made[-1].sizes["evaluation"]
    assert len(asked) < proposals


def test_fewer_rounds_and_larger_jobs_make_the_same_files(start, searched, tmp_path):
    """So that asking for more rounds repeats nothing of those that are made."""
    few, _ = in_rounds(start, ROUNDS - 1, 100, tmp_path)
    for one, other in zip(few, searched[0], strict=False):
        xr.testing.assert_identical(one, other)


def test_a_missing_evaluation_is_named(start):
    first = propose_round(start)
    with pytest.raises(ValueError, match=r'expected an evaluation of .*"layout"'):
        propose_round(start, first, [])


def test_answers_are_the_best_of_what_was_measured(start, searched):
    """By brute force, for each question and strategy."""
    made, parts = searched
    results = measured_results(start, made[-1], parts)
    selection = choose_settings(start, made[-1], parts)
    methods = {
        json.dumps(vars(method_of(SEARCH, setting)), sort_keys=True): setting
        for setting in all_settings(SEARCH)
    }
    assert selection.sizes["answer"] == 2 * 3
    for row in range(6):
        answer = selection.isel(answer=row)
        aim = str(answer["answer_aim"].values)
        strategy = str(answer["answer_strategy"].values)
        name = f"surrogate {aim}" if strategy == "surrogate" else strategy
        archive = results[name].archive
        points = list(
            zip(archive["memory"].values, archive["accuracy"].values, strict=True)
        )
        if aim == "max_drop":
            best = min((m, -a) for m, a in points if a >= 0.895 - 0.01 - 1e-9)
            found = best[0], -best[1]
        else:
            best = min((-a, m) for m, a in points if m <= SEARCH.aims[aim])
            found = best[1], -best[0]
        assert found == (answer["answer_memory"], answer["answer_accuracy"])
        setting = methods[str(answer["answer_method"].values)]
        assert made_up_accuracy(setting) == found[1]
        assert int(answer["answer_evaluations"]) == len(points)
    assert selection.sizes["evaluation"] == sum(
        one.archive.sizes["evaluation"] for one in results.values()
    )
    for name, variable in selection.variables.items():
        assert {"units", "long_name"} <= set(variable.attrs), name


def test_an_aim_that_nothing_meets_is_explained(start):
    first = propose_round(start)
    parts = in_parts(waiting_settings(first), 100)
    high = start.assign_attrs(baseline=0.99)
    first = propose_round(high)
    with pytest.raises(ValueError, match=r"within max_drop = 1\.0, but none of the 4"):
        choose_settings(high, first, parts)


def test_what_does_not_depend_on_the_aim_is_searched_once():
    names = ["surrogate max_drop", "surrogate max_memory", "random", "uniform"]
    assert list(SEARCH.members) == names
    only = with_aims(max_memory=0.5)
    assert only.members["random"] == ("random", "max_memory")
    assert only.aims == {"max_memory": 0.5 * 2**20}
