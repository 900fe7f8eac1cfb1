"""Mini-batches in a configuration: what a loader is told, and what trains in them."""

import copy
import json

import pytest

from pipeline_src.configuration.checks import ConfigurationError
from pipeline_src.configuration.plans import run_specs
from pipeline_src.training.spec import RunSpec
from tests.configuration.test_checks import SMALL, check

LOADERS = {
    "neighbor": {"batch_size": 8, "num_neighbors": [5, -1]},
    "saint_node": {"batch_size": 8, "num_steps": 3},
    "saint_walk": {"batch_size": 8, "num_steps": 3, "walk_length": 2},
    "cluster": {"batch_size": 2, "num_parts": 9},
}


def with_batches(**batches):
    config = copy.deepcopy(SMALL)
    config["sweeps"][0]["training"]["batches"] = batches
    return config


@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_is_in_the_specification_and_comes_back_from_a_record(loader):
    checked = check(with_batches(loader=loader, **LOADERS[loader]))
    assert check(checked) == checked
    spec = run_specs(checked)[0]
    named = spec.to_json()["training"]["batches"]
    assert named == {"loader": loader, **LOADERS[loader]}
    assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert RunSpec.from_params(spec.to_params()).training == spec.training


def test_full_batches_are_specified_as_ever():
    (spec, _) = run_specs(check(copy.deepcopy(SMALL)))
    assert spec.to_json()["training"] == {
        "epochs": 2,
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "gradient_clip": None,
        "loss": "cross_entropy",
    }


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ({"loader": "walk"}, "allowed: neighbor"),
        ({"loader": "cluster"}, "num_parts: is missing"),
        (
            {"loader": "cluster", "num_parts": 4, "num_steps": 2},
            "num_steps: means noth",
        ),
        ({"loader": "cluster", "num_parts": 1}, "at most num_parts, 1; got 2"),
        ({"loader": "neighbor", "num_neighbors": [5]}, "each of the 2 layers"),
        ({"loader": "neighbor", "num_neighbors": [5, 0]}, "num_neighbors"),
        ({"loader": "saint_walk", "num_steps": 2}, "walk_length: is missing"),
    ],
)
def test_what_fits_no_loader_is_refused(batches, message):
    with pytest.raises(ConfigurationError, match=message):
        check(with_batches(batch_size=2, **batches))


@pytest.mark.parametrize("technique", ["compiled", "budget"])
def test_methods_that_are_compiled_for_a_shape_are_refused(technique):
    config = with_batches(loader="cluster", **LOADERS["cluster"])
    method = {"label": "P", "policy": "pyg", "technique": technique}
    config["methods"]["pyg"] = method
    config["sweeps"][0]["methods"].append("pyg")
    with pytest.raises(ConfigurationError, match="full, exact, lean and compress can"):
        check(config)


def test_searches_have_no_batches():
    config = copy.deepcopy(SMALL)
    training = with_batches(loader="cluster")["sweeps"][0]["training"]
    config["activation_searches"] = [
        {"graphs": ["digits"], "models": ["sage-2x8"], "training": training}
    ]
    with pytest.raises(ConfigurationError, match="batches"):
        check(config)
