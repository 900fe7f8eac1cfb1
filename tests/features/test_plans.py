"""What a configuration asks of stored features, written out by hand."""

from dataclasses import replace

import pytest

from pipeline_src.features.plans import (
    FeatureMeasurement,
    FeatureSearch,
    FeatureTraining,
    feature_plans,
    feature_resume_key,
)

ENTRY = {
    "graphs": ["cora", "digits"],
    "models": ["gcn", "gat"],
    "epochs": None,
    "hidden": None,
    "dropout": None,
    "learning_rate": None,
    "weight_decay": None,
    "seeds": 5,
    "seeds_per_job": 2,
    "selection_seeds": 3,
    "max_drop": 0.5,
    "budget": 80,
    "strategies": ["random"],
    "candidate_bits": [32, 1, 4],
    "least_attention_bits": 4,
    "degree_buckets": 2,
    "input_range": "node",
    "attention_range": "receiver",
    "metadata": "bfloat16",
    "equal_bits": 4,
    "equal_budget": 48,
    "uniform_bits": [4, 1],
    "tuned_uniform_bits": [1],
    "fine_tuning_epochs": 40,
}


def plans(**changes):
    return feature_plans({"feature_bits": [ENTRY | changes]})


def test_every_graph_and_model_has_a_plan_of_three_parts():
    names = [plan.name for plan in plans()]
    assert names == ["cora-gcn", "cora-gat", "digits-gcn", "digits-gat"]
    first = plans()[0]
    assert first.selection == FeatureTraining("cora", "gcn", None, (1000, 1001, 1002))
    assert [block.seeds for block in first.blocks] == [(0, 1), (2, 3), (4,)]
    assert first.blocks[-1].name == "cora-gcn-s4to4"
    assert first.search == FeatureSearch(
        (1, 4, 32), 2, 4, "node", "receiver", "bfloat16", 0.5, 80, ("random",), 4, 48
    )
    assert first.measurement == FeatureMeasurement((4, 1), (1,), 40)


def test_seeds_of_selection_and_measurement_never_meet():
    for plan in plans(seeds=1000, seeds_per_job=7):
        fresh = {seed for block in plan.blocks for seed in block.seeds}
        assert len(fresh) == 1000
        assert not fresh & set(plan.selection.seeds)


def test_parts_survive_json():
    plan = plans()[0]
    for part in (plan.selection, *plan.blocks, plan.search, plan.measurement):
        assert type(part).from_params(part.to_params()) == part


def test_a_part_changes_with_its_own_keys_only():
    """More seeds repeat no search; a budget trains nothing."""
    before, more = plans()[0], plans(seeds=6)[0]
    assert more.search.to_params() == before.search.to_params()
    assert more.selection == before.selection
    assert more.blocks[:2] == before.blocks[:2]
    dearer = plans(budget=100)[0]
    assert (dearer.blocks, dearer.measurement) == (before.blocks, before.measurement)
    assert dearer.search != before.search


def test_a_place_may_be_asked_for_once():
    entries = [ENTRY, ENTRY | {"graphs": ["cora"], "models": ["gat"]}]
    cause = "feature_bits: cora-gat occurs 2 times.*other hyper-parameters: hidden"
    with pytest.raises(ValueError, match=cause):
        feature_plans({"feature_bits": entries})


@pytest.mark.parametrize(
    ("own", "name", "text"),
    [
        ({"hidden": 64}, "hidden64", "hidden 64"),
        ({"dropout": 0.0}, "dropout0", "dropout 0"),  # falsy, and a value
        ({"learning_rate": 0.002}, "learning_rate0.002", "learning rate 0.002"),
        ({"weight_decay": 0.0}, "weight_decay0", "weight decay 0"),
    ],
)
def test_hyperparameters_of_its_own_make_another_place(own, name, text):
    """Beside the published ones, with records of its own for networks and search."""
    entry = ENTRY | {"graphs": ["cora"], "models": ["gcn"]}
    published, other = feature_plans({"feature_bits": [entry, entry | own]})
    assert (published.name, other.name) == ("cora-gcn", f"cora-gcn-{name}")
    assert other.blocks[0].name == f"cora-gcn-{name}-s0to1"
    assert other.selection.own == other.blocks[0].own == own
    assert published.selection.hyperparameters == "published"
    assert other.selection.hyperparameters == text
    longer = replace(other.selection, epochs=9)
    assert longer.hyperparameters == f"{text}, 9 epochs"


def test_the_resume_key_knows_question_and_inputs(tmp_path):
    path = tmp_path / "graph.npz"
    path.write_bytes(b"one")
    key = feature_resume_key("{}", [path])
    assert key == feature_resume_key("{}", [path])
    assert key != feature_resume_key('{"budget": 1}', [path])
    path.write_bytes(b"two")
    assert key != feature_resume_key("{}", [path])
