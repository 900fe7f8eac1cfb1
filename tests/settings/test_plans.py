"""What a configuration asks of activation settings, written out by hand."""

import pytest

from pipeline_src.settings.plans import (
    ActivationSearch,
    activation_plans,
    methods_from_params,
)
from pipeline_src.training.spec import MethodSpec, ModelSpec, TrainingSpec

ENTRY = {
    "graphs": ["digits", "cora"],
    "models": ["gcn-3x64"],
    "policies": ["lean", "exact"],
    "bits": [1, 2, 4, 8],
    "rows_per_block": [8, 64],
    "projection_ratios": [1, 8],
    "boundaries": "even",
    "objective": "saved",
    "max_drop": 0.5,
    "max_memory": 0.25,
    "rounds": 5,
    "round_size": 8,
    "evaluations_per_job": 10,
    "strategies": ["random"],
    "selection_seeds": 3,
    "selection_epochs": 20,
    "methods": ["lean"],
    "seeds": 5,
    "seeds_per_job": 2,
    "training": {
        "epochs": 60,
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "gradient_clip": 0.5,
        "loss": "cross_entropy",
    },
}
MODEL = {
    "layer": "gcn",
    "num_layers": 3,
    "hidden": 64,
    "dropout": 0.5,
    "batch_norm": True,
}
LEAN = {"label": "lean", "policy": "lean", "bits": 2, "rows_per_block": 8}


def plans(**changes):
    return activation_plans(
        {
            "models": {"gcn-3x64": MODEL},
            "methods": {"lean": LEAN, "vm": LEAN | {"boundaries": "clipped_normal"}},
            "device": "cpu",
            "compile": "false",
            "activation_searches": [ENTRY | changes],
        }
    )


def test_every_graph_and_model_has_a_plan():
    assert [plan.name for plan in plans()] == ["digits-gcn-3x64", "cora-gcn-3x64"]
    first = plans()[0]
    run = first.search.run
    assert run.model == ModelSpec("gcn-3x64", "gcn", 3, 64, 0.5, True)
    assert run.training == TrainingSpec(20, 0.01, 0.0, 0.5, "cross_entropy")
    assert run.seeds == (1000, 1001, 1002)
    assert run.method.policy == "full"
    assert first.methods == (MethodSpec("lean", "lean", "lean", 2, 1, 8),)
    assert list(first.measured) == [
        "digits-gcn-3x64-s0to1",
        "digits-gcn-3x64-s2to3",
        "digits-gcn-3x64-s4to4",
    ]
    assert {block.training.epochs for block in first.blocks} == {60}
    assert plans(selection_epochs=None)[0].search.run.training.epochs == 60


def test_seeds_of_selection_and_measurement_never_meet():
    for plan in plans(seeds=1000, seeds_per_job=7):
        fresh = {seed for block in plan.blocks for seed in block.seeds}
        assert len(fresh) == 1000
        assert not fresh & set(plan.search.run.seeds)


def test_a_round_has_jobs_for_all_that_its_searches_may_propose():
    """Two of the surrogate and one of random, eight settings each: 24 in jobs of 10."""
    plan = plans()[0]
    assert list(plan.search.members) == [
        "surrogate max_drop",
        "surrogate max_memory",
        "random",
    ]
    assert plan.num_parts == 3
    assert plans(max_memory=None)[0].num_parts == 2


def test_aims_are_a_share_and_bytes():
    search = plans()[0].search
    assert search.aims == {"max_drop": 0.005, "max_memory": 2**18}
    assert search.limits == {"max_drop": "0.5 points", "max_memory": "0.25 MiB"}


def test_parts_survive_json():
    plan = plans()[0]
    text = plan.search.to_params()
    again = ActivationSearch.from_params(text, device="cpu", compile="false")
    assert again == plan.search
    assert methods_from_params(plan.methods_to_params()) == list(plan.methods)


def test_more_rounds_or_smaller_jobs_change_no_job_that_is_done():
    before, after = plans()[0], plans(rounds=9, evaluations_per_job=1, seeds=6)[0]
    assert after.search.to_params() == before.search.to_params()
    assert after.blocks[:2] == before.blocks[:2]


def test_boundaries_are_solved_only_where_a_method_asks():
    assert not plans()[0].needs_boundaries
    assert plans(methods=["vm"])[0].needs_boundaries
    assert not plans(methods=["vm"])[0].search.needs_boundaries
    assert plans(boundaries="clipped_normal")[0].needs_boundaries


def test_a_place_may_be_asked_for_once():
    with pytest.raises(ValueError, match="searches: digits-gcn-3x64 occurs 2 times"):
        plans(graphs=["digits", "digits"])
