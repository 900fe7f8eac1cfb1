"""Settings as configurations: one method each, memory to the byte, values in order."""

from collections import defaultdict
from dataclasses import replace

import pytest
from made_up_searches import GRAPH, SEARCH

from pipeline_src.settings.evaluation import start_search
from pipeline_src.settings.space import (
    LAYOUT,
    all_settings,
    method_of,
    search_space,
    setting_text,
)
from pipeline_src.training.job import Job
from pipeline_src.training.step_memory import measure_step_memory
from pipeline_src.training.trainer import Trainer

SETTINGS = all_settings(SEARCH)


@pytest.fixture(scope="module")
def start():
    return start_search(SEARCH, Job(GRAPH))


@pytest.fixture(scope="module")
def memory(start):
    texts, values = start["setting"].values.tolist(), start["memory"].values.tolist()
    return dict(zip(texts, values, strict=True))


def test_a_space_is_the_product_of_its_variables(memory):
    """Lean and two projections, 3 widths of 2 layers, 2 block sizes."""
    space = search_space(SEARCH, GRAPH.num_nodes, memory)
    assert len(SETTINGS) == space.size == 3 * 3 * 3 * 2
    names = [LAYOUT, "bits of layer 1", "bits of layer 2", "rows per block"]
    assert [one.name for one in space.variables] == names
    assert space.variables[0].values == ("lean", "exact 4", "exact 1")
    assert [one.ordered for one in space.variables] == [False, True, True, True]
    assert space.variables[1].values == (1, 2, 8)
    assert space.variables[3].values == (64, 8)


def test_no_two_settings_are_one_method():
    """Else the search would measure a method twice and believe it saw two."""
    methods = [method_of(SEARCH, setting) for setting in SETTINGS]
    assert len(set(methods)) == len({one.name for one in methods}) == len(SETTINGS)
    assert len({one.label for one in methods}) == len(SETTINGS)
    assert {one.policy for one in methods} == {"lean", "exact"}
    assert {one.projection_ratio for one in methods if one.policy == "lean"} == {1}


def test_a_method_keeps_what_its_setting_says():
    setting = dict(zip(SETTINGS[0], ("exact 4", 2, 8, 64), strict=True))
    method = method_of(replace(SEARCH, boundaries="clipped_normal"), setting)
    assert (method.policy, method.layer_bits, method.bits) == ("exact", (2, 8), 32)
    assert (method.projection_ratio, method.rows_per_block) == (4, 64)
    assert method.needs_boundaries
    assert method.label == "exact, 2 and 8 bits, D/R 4, 64 rows, VM"
    assert method_of(SEARCH, setting | {"bits of layer 2": 2}).bits == 2
    lean = method_of(
        replace(SEARCH, boundaries="clipped_normal"), setting | {"layout": "lean"}
    )
    assert lean.boundaries == "even"


def test_fewer_bits_never_take_more_memory(memory):
    """In one layer or the other, with all else equal."""
    for setting in SETTINGS:
        for layer in (1, 2):
            bytes_of = [
                memory[setting_text(setting | {f"bits of layer {layer}": bits})]
                for bits in (1, 2, 8)
            ]
            assert bytes_of == sorted(bytes_of)


def test_memory_is_what_the_allocator_shows(memory):
    """To the byte, for each layout: one setting of unequal bits."""
    chosen = defaultdict(list)
    for setting in SETTINGS:
        if setting["bits of layer 1"] != setting["bits of layer 2"]:
            chosen[setting[LAYOUT]].append(setting)
    for settings in chosen.values():
        for setting in settings[:1] + settings[-1:]:
            run = replace(SEARCH.run, method=method_of(SEARCH, setting))
            measured = measure_step_memory(Trainer(run, GRAPH, None, 0))
            assert measured["saved_memory"] == memory[setting_text(setting)]


def test_the_peak_of_each_setting_is_measured_where_it_is_the_objective(tmp_path):
    search = replace(
        SEARCH,
        objective="peak",
        policies=("lean",),
        bits=(1, 8),
        rows_per_block=(8,),
        max_memory=None,
    )
    start = start_search(search, Job(GRAPH, partial_dir=tmp_path))
    for setting, peak in zip(all_settings(search), start["memory"].values, strict=True):
        run = replace(search.run, method=method_of(search, setting))
        measured = measure_step_memory(Trainer(run, GRAPH, None, 1000))
        assert peak == measured["peak_memory"]
    full = measure_step_memory(Trainer(search.run, GRAPH, None, 1000))
    assert start.attrs["full_memory"] == full["peak_memory"]
    (tmp_path / "kept").mkdir()
    again = start_search(search, Job(GRAPH, partial_dir=tmp_path))
    assert again.identical(start)


def test_memory_that_no_setting_has_is_refused_before_anything_is_trained():
    message = r"max_memory must be at least 0\.0\d+ MiB, .* \(lean, 1 bit, 64 rows\)"
    with pytest.raises(ValueError, match=message):
        start_search(replace(SEARCH, max_memory=1e-6), Job(GRAPH))
