"""Models that are classes, and what can train them."""

import copy
import importlib
import json
import sys
from types import ModuleType

import pytest

from pipeline_src.configuration.checks import ConfigurationError
from pipeline_src.configuration.model_keys import file_of_class
from pipeline_src.configuration.plans import (
    class_model_specs,
    measurement_plans,
    run_specs,
)
from pipeline_src.training.spec import ModelSpec, RunSpec
from tests.configuration.test_checks import SMALL, check, put

GAT = {
    "class": "torch_geometric.nn.GAT",
    "arguments": {"hidden_channels": 8, "num_layers": 2, "heads": 4},
}
LEAN = {"label": "lean", "policy": "lean", "bits": 2, "rows_per_block": 8}
METHODS = {
    "fp32": {"label": "FP32", "policy": "full"},
    "pyg": {"label": "PyG", "policy": "pyg"},
    "bf16": {"label": "bfloat16", "policy": "pyg", "technique": "autocast"},
    "compress2": {"label": "compress INT2", "policy": "compress", "bits": 2},
}


@pytest.fixture
def config():
    config = copy.deepcopy(SMALL)
    config["models"]["gat"] = copy.deepcopy(GAT)
    config["methods"].update(copy.deepcopy(METHODS), lean=LEAN)
    entry = {"graphs": ["digits"], "models": ["gat"], "methods": list(METHODS)}
    config["sweeps"].append({**entry, "training": {"epochs": 2}})
    config["measurements"] = [{**entry, "timed_methods": list(METHODS)}]
    return config


def test_a_class_becomes_a_specification_that_comes_back_from_a_record(config):
    checked = check(config)
    assert check(checked) == checked
    (spec,) = [
        one
        for one in run_specs(checked)
        if (one.model.name, one.method.name) == ("gat", "compress2")
    ]
    assert spec.model.is_class
    assert spec.model.layer == GAT["class"]
    assert json.loads(spec.model.arguments) == GAT["arguments"]
    assert (spec.model.input, spec.method.bits) == ("edges", 2)
    assert RunSpec.from_json(spec.to_json()) == spec
    again = RunSpec.from_params(spec.to_params(), device=spec.device)
    assert again.model == spec.model
    assert len(measurement_plans(checked)[0].specs) == 4


def test_arguments_are_part_of_what_decides_a_record(config):
    first = run_specs(check(config))
    config["models"]["gat"]["arguments"]["heads"] = 2
    second = run_specs(check(config))
    changed = [
        one.model.name
        for one, other in zip(first, second, strict=True)
        if one.to_params() != other.to_params()
    ]
    assert changed == ["gat"] * 4


def test_layers_are_no_class(config):
    values = check(config)["models"]["sage-2x8"]
    assert not ModelSpec.from_config("sage-2x8", values).is_class


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("models.sage-2x8.hidden", ..., r"^models\.sage-2x8\.hidden: is missing; or"),
        ("models.sage-2x8.arguments", {"heads": 2}, "arguments: means nothing without"),
        ("models.sage-2x8.input", "matrix", "input: means nothing without a class"),
        ("models.gat.hidden", 8, r"^models\.gat\.hidden: means nothing beside a cla"),
        ("models.gat.dropout", 0.1, "dropout: means nothing beside a class"),
        ("models.gat.class", "GAT", r"^models\.gat\.class: .*got 'GAT'"),
        ("models.gat.class", "os.path; x", r"^models\.gat\.class: .*got 'os\.path; x'"),
        ("models.gat.class", "no_such.Net", "there is no no_such; install it, or put"),
        (
            "activation_searches",
            [{"graphs": ["digits"], "models": ["gat"], "training": {"epochs": 1}}],
            r"activation_searches\[0\]\.models: 'gat' is a class, and settings are",
        ),
        ("models.gat.arguments", [2], r"arguments: expected .*got \[2\]"),
        ("models.gat.arguments", {"a": b"bytes"}, "arguments: expected numbers, text"),
        ("models.gat.arguments", {"a": float("nan")}, "arguments: expected numbers"),
        ("models.gat.input", "matrix", "'bf16' is bfloat16, in which PyTorch mult"),
        ("methods.compress2.bits", 1, "policy compress needs one of .* got 1"),
        ("methods.compress2.bits", ..., "policy compress needs one of .* got null"),
        ("methods.compress2.rows_per_block", 8, "means nothing with policy compress"),
        ("sweeps.1.methods", ["lean"], "'lean' cannot train the class 'gat': full and"),
        ("sweeps.1.methods", ["block64"], "'block64' cannot train the class 'gat'"),
        (
            "captures",
            [
                {
                    "graphs": ["digits"],
                    "models": ["gat"],
                    "method": "block64",
                    "epochs": [1],
                }
            ],
            r"^captures\[0\]\.models: 'gat' is a class, and activations are captured",
        ),
        (
            "byte_books",
            [{"graphs": ["arxiv_shape"], "models": ["gat"], "methods": ["fp32"]}],
            r"byte_books\[0\]\.models: 'gat' is a class, and bytes of a class are meas",
        ),
        (
            "byte_books",
            [
                {
                    "graphs": ["arxiv_shape"],
                    "models": ["sage-2x8"],
                    "methods": ["compress2"],
                }
            ],
            "'compress2' has no byte book",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_job(
    config, path, value, message
):
    put(config, path, value)
    with pytest.raises(ConfigurationError, match=message):
        check(config)


def test_each_class_in_use_is_tried_once(config):
    config["models"]["other"] = copy.deepcopy(GAT)
    found = class_model_specs(check(config))
    assert set(found) == {"gat"}
    assert found["gat"].method.policy == "full"
    config["sweeps"].pop()
    assert set(class_model_specs(check(config))) == {"gat"}, "it is measured"


def test_a_class_and_its_file_are_found_without_importing_it(
    config, tmp_path, monkeypatch
):
    """It would take seconds at each start, and run what is not asked to run yet."""
    package = tmp_path / "bursting"
    (package / "deep").mkdir(parents=True)
    for file in ("__init__.py", "net.py", "deep/__init__.py"):
        (package / file).write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config["models"]["gat"]["class"] = "bursting.net.Net"
    assert check(config)
    assert file_of_class("bursting.Net") == package / "__init__.py"
    assert file_of_class("bursting.net.Net") == package / "net.py"
    assert file_of_class("bursting.deep.Net") == package / "deep" / "__init__.py"
    assert file_of_class("bursting.lost.Net") is None
    assert file_of_class("torch_geometric.nn.GAT") is None, "installed: of a version"
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("bursting")


def test_a_module_without_a_file_is_told(config, monkeypatch):
    """Of such a module Python knows no specification, and says so by an error."""
    name = "made_by_hand_in_a_test"
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    put(config, "models.gat.class", f"{name}.Net")
    with pytest.raises(ConfigurationError, match=f"there is no {name}"):
        check(config)
