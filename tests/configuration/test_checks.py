"""Each wrong configuration gets one line: where, what was expected, what came."""

import copy
from collections import OrderedDict
from pathlib import Path

import pytest
import yaml

from pipeline_src.configuration.checks import (
    ConfigurationError,
    checked_configuration,
    read_schema,
    refuse_repeated_keys,
)
from pipeline_src.configuration.plans import run_specs
from pipeline_src.configuration.schemas import describe_keys
from pipeline_src.graphs.embedded import EMBEDDED_GRAPHS
from pipeline_src.graphs.raw_sources import RAW_SOURCES
from pipeline_src.graphs.sizes import GRAPH_SIZES
from pipeline_src.training.spec import MethodSpec

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = read_schema(ROOT / "workflow" / "schemas" / "config.schema.yaml")
SHIPPED = sorted((ROOT / "config").glob("*.yaml"))

SMALL = {
    "run": "small",
    "models": {"sage-2x8": {"layer": "sage", "num_layers": 2, "hidden": 8}},
    "methods": {
        "fp32": {"label": "FP32", "policy": "full"},
        "block64": {"label": "64", "policy": "exact", "bits": 2, "rows_per_block": 64},
    },
    "sweeps": [
        {
            "graphs": ["digits"],
            "models": ["sage-2x8"],
            "methods": ["fp32", "block64"],
            "training": {"epochs": 2},
        }
    ],
}


@pytest.fixture
def config():
    return copy.deepcopy(SMALL)


def check(config):
    return checked_configuration(config, SCHEMA)


def put(config, path, value):
    """Set the value at a path such as sweeps.0.seeds; `...` deletes it."""
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in parents:
        config = config.setdefault(key, {}) if isinstance(config, dict) else config[key]
    if value is ...:
        del config[last]
    else:
        config[last] = value


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path):
    assert check(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_defaults_are_filled_in(config):
    filled = check(config)
    assert filled["device"] == filled["compile"] == "auto"
    assert filled["data_mirror"] is None
    assert filled["measurements"] == filled["captures"] == []
    assert filled["figures"] == {"formats": ["png", "svg"]}
    assert filled["models"]["sage-2x8"]["dropout"] == 0.5
    assert filled["sweeps"][0]["seeds"] == 5
    assert filled["sweeps"][0]["training"] == {
        "epochs": 2,
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "gradient_clip": None,
        "loss": "cross_entropy",
        "batches": None,
    }
    assert (
        "training" not in config["measurements"] if "measurements" in config else True
    )


def test_the_input_is_left_alone(config):
    check(config)
    assert config == SMALL


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_checking_twice_changes_nothing(path):
    """A job on a cluster's node checks what the head process has checked."""
    once = check(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert check(once) == once


def test_defaults_of_the_schema_are_those_of_the_library(config):
    method = check(config)["methods"]["block64"]
    assert MethodSpec.from_json({"name": "m", **method}) == MethodSpec(
        "m", "64", "exact", 2, 1, 64
    )
    full = check(config)["methods"]["fp32"]
    assert MethodSpec.from_json({"name": "m", **full}) == MethodSpec(
        "m", "FP32", "full"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [("auto", "auto"), (True, "true"), (False, "false"), ("false", "false")],
)
def test_compile_becomes_a_word(config, value, text):
    config["compile"] = value
    assert check(config)["compile"] == text


def test_mappings_of_the_yaml_reader_become_plain(config):
    odd = OrderedDict(config, models=OrderedDict(config["models"]))
    assert type(check(odd)["models"]) is dict


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "epochs",
            3,
            r"^epochs: unknown key; allowed: activation_searches, byte_books, ",
        ),
        ("sweep", [], r"^sweep: unknown key; did you mean 'sweeps'\?$"),
        ("sweeps", ..., r"^sweeps: is missing and has no default$"),
        ("sweeps", {}, r"^sweeps: expected a list, got \{\}$"),
        ("run", None, r"^run: expected text, got null$"),
        ("run", "Über", r"^run: expected lower-case letters.* got 'Über'$"),
        ("run", "a/../b", r"^run: expected lower-case letters.*"),
        ("run", "a\n", r"^run: expected lower-case letters.*"),
        ("device", "gpu", r"^device: got 'gpu'; allowed: auto, cpu, cuda$"),
        ("compile", 1, r"^compile: got 1; allowed: auto, true, false$"),
        ("data_mirror", "", r"^data_mirror: expected text that is not empty, got ''$"),
        (
            "data_mirror",
            "ftp://x",
            r"^data_mirror: expected a folder \(/path, ~/path, ",
        ),
        ("data_mirror", 3, r"^data_mirror: expected text or null, got 3$"),
        ("sweeps.0.graphs", [], r"^sweeps\[0\]\.graphs: expected at least 1 entry"),
        (
            "sweeps.0.graphs",
            ["digit"],
            r"^sweeps\[0\]\.graphs\[0\]: got 'digit'; allowed: digits, arxiv_shape, ",
        ),
        (
            "sweeps.0.graphs",
            ["cora", "cora"],
            r"^sweeps\[0\]\.graphs: expected each entry once, got \[cora, cora\]$",
        ),
        ("sweeps.0.seeds", 0, r"^sweeps\[0\]\.seeds: expected .*at most 10000, got 0$"),
        ("sweeps.0.seeds", 2.0, r"^sweeps\[0\]\.seeds: expected an integer.*got 2\.0$"),
        ("sweeps.0.seeds", True, r"^sweeps\[0\]\.seeds: expected .*got true$"),
        (
            "sweeps.0.training.epochs",
            "60",
            r"^sweeps\[0\]\.training\.epochs: .*got '60' \(text; without the quotes",
        ),
        (
            "sweeps.0.training.learning_rate",
            "1e-2",
            r"learning_rate: expected a number above 0 and at most 1000, got '1e-2' "
            r".*write 0\.01\)$",
        ),
        (
            "sweeps.0.training.learning_rate",
            float("nan"),
            r"learning_rate: expected a number above 0 and at most 1000, got \.nan$",
        ),
        ("sweeps.0.training.gradient_clip", 0, r"expected a number or null above 0"),
        (
            "sweeps.0.training",
            ...,
            r"^sweeps\[0\]\.training: is missing and has no default$",
        ),
        (
            "sweeps.0.methods",
            ["block46"],
            r"^sweeps\[0\]\.methods: 'block46' is not among the methods; did you mean "
            r"'block64'\?$",
        ),
        (
            "sweeps.0.models",
            ["x"],
            r"^sweeps\[0\]\.models: 'x' is not among the models; allowed: sage-2x8$",
        ),
        (
            "models.Sage",
            {"layer": "sage", "num_layers": 1, "hidden": 1},
            r"^models: expected lower-case letters.*got 'Sage'$",
        ),
        (
            "models.sage-2x8.layer",
            "gat",
            r"^models\.sage-2x8\.layer: got 'gat'; allowed: sage, gcn$",
        ),
        ("models.sage-2x8.dropout", 1.0, r"dropout: expected .*below 1, got 1\.0$"),
        ("models.sage-2x8.batch_norm", "on", r"batch_norm: expected true or false"),
        ("methods.block64.bits", 3, r"bits: got 3; allowed: 1, 2, 4, 8, 32$"),
        ("methods.block64.bits", 2.0, r"bits: expected .*got 2\.0$"),
        ("methods.block64.bits", ..., r"^methods\.block64\.bits: is missing; policy"),
        ("methods.block64.max_block_size", 100, r"a multiple of 32, got 100$"),
        ("methods.fp32.bits", 2, r"^methods\.fp32\.bits: means nothing with policy f"),
        ("methods.fp32.max_block_size", 64, r"max_block_size: means nothing with"),
        ("methods.block64.7", 1, r"^methods\.block64: keys are text, got 7$"),
        ("figures.formats", ["pdf"], r"^figures\.formats\[0\]: got 'pdf'; allowed"),
    ],
)
def test_message_names_the_key_what_was_expected_and_what_came(
    config, path, value, message
):
    put(config, path, value)
    with pytest.raises(ConfigurationError, match=message) as caught:
        check(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bits", [1, 32])
def test_solved_boundaries_need_inner_edges(config, bits):
    config["methods"]["block64"].update(bits=bits, boundaries="clipped_normal")
    with pytest.raises(ConfigurationError, match=rf"{bits} bits have none; take 2, 4"):
        check(config)


def test_the_published_layout_takes_bits_of_each_hidden_layer(config):
    method = config["methods"]["block64"]
    del method["bits"]
    method.update(layer_bits=[4], boundaries="clipped_normal")
    assert check(check(config))["methods"]["block64"]["layer_bits"] == [4]
    method["layer_bits"] = [1]
    with pytest.raises(ConfigurationError, match="1 bits have none"):
        check(config)
    method.update(bits=2, layer_bits=[4])
    with pytest.raises(ConfigurationError, match="layer_bits says the bits of each"):
        check(config)


def test_timed_methods_are_among_the_measured(config):
    config["measurements"] = [
        {
            "graphs": ["digits"],
            "models": ["sage-2x8"],
            "methods": ["fp32"],
            "timed_methods": ["block64"],
        }
    ]
    with pytest.raises(
        ConfigurationError,
        match=r"^measurements\[0\]\.timed_methods: 'block64' is not among the methods",
    ):
        check(config)


def test_a_capture_needs_a_method_that_compresses(config):
    config["captures"] = [
        {"graphs": ["digits"], "models": ["sage-2x8"], "method": "fp32", "epochs": [1]}
    ]
    with pytest.raises(
        ConfigurationError, match=r"^captures\[0\]\.method: 'fp32' compresses nothing"
    ):
        check(config)


def test_epochs_of_a_measurement_are_not_a_key(config):
    config["measurements"] = [
        {
            "graphs": ["digits"],
            "models": ["sage-2x8"],
            "methods": ["fp32"],
            "training": {"epochs": 3},
        }
    ]
    with pytest.raises(
        ConfigurationError, match=r"measurements\[0\]\.training\.epochs: unknown key"
    ):
        check(config)


def test_clashes_of_cells_are_refused_as_configuration(config):
    config["sweeps"].append({**config["sweeps"][0], "seeds_per_job": 2})
    with pytest.raises(ConfigurationError, match="seed 0 would be trained twice"):
        check(config)


def test_every_problem_gets_a_line(config):
    config.update(device="gpu", typo=1)
    with pytest.raises(ConfigurationError) as caught:
        check(config)
    assert len(str(caught.value).splitlines()) == 2


def test_labels_of_methods_in_use_are_told_apart(config):
    config["methods"]["again"] = config["methods"]["block64"]
    assert check(config), "nothing asks for it"
    config["sweeps"][0]["methods"].append("again")
    message = "^methods.again.label: .* got '64', the label of 'block64'$"
    with pytest.raises(ConfigurationError, match=message):
        check(config)


@pytest.mark.parametrize("text", ["a\nb", "\0", "\ud800", "\u202e"])
def test_text_can_be_printed(config, text):
    """Tables, figures and names of files end badly otherwise, after the training."""
    for path in ("methods.fp32.label", "data_mirror"):
        broken = copy.deepcopy(config)
        put(broken, path, text)
        with pytest.raises(ConfigurationError, match=rf"^{path}: expected one line of"):
            check(broken)


@pytest.mark.parametrize(
    "method",
    [
        {"policy": "lean", "bits": 2, "rows_per_block": 8},
        {"policy": "pyg", "technique": "quantized_hooks", "bits": 4},
        {"policy": "compress", "bits": 4},
    ],
)
def test_a_capture_needs_the_published_layout(config, method):
    """As `capture_activations` does, but before anything has run."""
    config["methods"]["other"] = {"label": "other", **method}
    config["captures"] = [
        {"graphs": ["digits"], "models": ["sage-2x8"], "method": "other", "epochs": [1]}
    ]
    with pytest.raises(ConfigurationError, match="'other' compresses nothing that"):
        check(config)


def numbers_of(schema, path=""):
    if isinstance(schema, dict):
        kinds = schema.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if {"integer", "number"} & {kind for kind in kinds if isinstance(kind, str)}:
            yield path, schema
        for key, value in schema.items():
            yield from numbers_of(value, f"{path}/{key}")


def test_every_number_has_bounds():
    """Without an upper one a plan may fill the memory before anything is refused."""
    found = dict(numbers_of(SCHEMA))
    assert len(found) > 30
    for path, key in found.items():
        upper = {"maximum", "exclusiveMaximum", "enum"} & set(key)
        lower = {"minimum", "exclusiveMinimum", "enum"} & set(key)
        assert upper, path
        assert lower, path


def test_a_key_that_a_file_gives_twice_is_named_with_its_lines(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("run: a\nmodels: &a\n  b: {c: 1, c: 2}\n  d: *a\nrun: b\n")
    with pytest.raises(ConfigurationError) as caught:
        refuse_repeated_keys([path])
    assert str(caught.value).splitlines() == [
        f"{path}, line 3: 'c' is given in line 3 already",
        f"{path}, line 5: 'run' is given in line 1 already",
    ]
    refuse_repeated_keys(SHIPPED)


def test_the_graphs_are_those_that_can_be_prepared():
    names = SCHEMA["$defs"]["graphs"]["items"]["enum"]
    raw = {source.graph for source in RAW_SOURCES.values()}
    assert set(names) == set(EMBEDDED_GRAPHS) | raw
    assert not [name for name in names if "-" in name], "cells are split at hyphens"


def test_every_key_says_what_it_means():
    def keys(schema):
        for key in schema.get("properties", {}).values():
            target = SCHEMA["$defs"].get(key.get("$ref", "").split("/")[-1], {})
            if "/properties/" not in key.get("$ref", ""):
                yield {**target, **key}
            yield from keys(key)

    described = [*keys(SCHEMA), *(k for d in SCHEMA["$defs"].values() for k in keys(d))]
    assert len(described) > 30
    assert all(len(key["description"]) > 10 for key in described)


def test_the_table_of_keys_has_a_row_for_each():
    rows = describe_keys(SCHEMA).splitlines()[2:]
    names = [row.split("|")[1].strip(" `") for row in rows]
    assert len(set(names)) == len(names) > 50
    assert {"run", "sweeps[].seeds", "methods.<name>.bits"} <= set(names)
    assert all(row.count(" | ") >= 3 for row in rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "bits: is missing; policy lean needs 1, 2, 4, 8 or 32"),
        (
            {"bits": 2, "layer_bits": [2], "rows_per_block": 4},
            "bits: layer_bits says the bits of each layer; leave one out",
        ),
        (
            {"layer_bits": [8, 1], "rows_per_block": 4},
            "rows_per_block: expected a multiple of 8, .* 1-bit codes .* got 4",
        ),
        (
            {"bits": 8, "technique": "eager", "max_block_size": 64},
            "max_block_size: means nothing with policy lean; got 64, leave it out",
        ),
        (
            {"bits": 2, "rows_per_block": 6},
            "rows_per_block: expected a multiple of 4, .* got 6",
        ),
        (
            {"bits": 2, "rows_per_block": 8, "boundaries": "clipped_normal"},
            "boundaries: the codes of lean have no fixed edges .* leave it out",
        ),
        (
            {"bits": 8, "projection_ratio": 2},
            "projection_ratio: lean keeps nothing that could be projected",
        ),
        (
            {"bits": 8, "projection_ratio": 2, "without": ["sided_codes"]},
            "projection_ratio: lean keeps nothing that could be projected",
        ),
    ],
)
def test_lean_refuses_what_it_has_no_use_for(config, settings, message):
    config["methods"]["block64"] = {"label": "lean", "policy": "lean", **settings}
    with pytest.raises(ConfigurationError, match=rf"^methods\.block64\.{message}"):
        check(config)


def test_lean_takes_whole_bytes_of_rows(config):
    lean = {"label": "lean", "policy": "lean", "bits": 4, "rows_per_block": 6}
    config["methods"]["block64"] = lean
    assert check(config)["methods"]["block64"]["rows_per_block"] == 6


def test_lean_takes_bits_of_each_hidden_layer(config):
    lean = {"label": "lean", "policy": "lean", "layer_bits": [4], "rows_per_block": 8}
    config["methods"]["block64"] = lean
    assert check(check(config))["methods"]["block64"]["layer_bits"] == [4]
    lean["layer_bits"] = [4, 2]
    message = "'block64' has layer_bits for 2 hidden layers, but model 'sage-2x8' has 1"
    with pytest.raises(ConfigurationError, match=message):
        check(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"technique": "quantized_hooks"},
            r"bits: technique quantized_hooks needs one of \(4, 8\), got null",
        ),
        (
            {"technique": "autocast", "bits": 8},
            "bits: belongs to technique quantized_hooks, not to autocast",
        ),
        (
            {"memory_budget": 0.5},
            "memory_budget: belongs to technique budget, not to eager",
        ),
        ({"without": ["sided_codes"]}, "without: means nothing with policy pyg"),
    ],
)
def test_pyg_refuses_what_it_has_no_use_for(config, settings, message):
    config["methods"]["block64"] = {"label": "PyG", "policy": "pyg", **settings}
    with pytest.raises(ConfigurationError, match=rf"^methods\.block64\.{message}"):
        check(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"bits: policy compress needs one of \(2, 4, 8, 32\), got null"),
        ({"bits": 1}, r"bits: policy compress needs one of \(2, 4, 8, 32\), got 1"),
        (
            {"bits": 2, "technique": "checkpointing"},
            "technique: means nothing with policy compress; got 'checkpointing'",
        ),
        (
            {"bits": 2, "rows_per_block": 8},
            "rows_per_block: means nothing with policy compress; got 8, leave it out",
        ),
    ],
)
def test_compress_takes_bits_and_nothing_else(config, settings, message):
    method = {"label": "compress", "policy": "compress", **settings}
    config["methods"]["block64"] = method
    with pytest.raises(ConfigurationError, match=rf"^methods\.block64\.{message}"):
        check(config)
    config["methods"]["block64"] = {**method, "bits": 2}
    for key in settings.keys() - {"bits"}:
        del config["methods"]["block64"][key]
    assert check(check(config))["methods"]["block64"]["bits"] == 2


@pytest.mark.parametrize(
    ("method", "graph", "message"),
    [
        ({"policy": "pyg"}, "arxiv_shape", "'other' has no byte book"),
        ({"policy": "compress", "bits": 2}, "arxiv_shape", "'other' has no byte book"),
        ({"policy": "lean", "bits": 32}, "arxiv_shape", "'other' has no byte book"),
        (
            {"policy": "lean", "bits": 8, "without": ["rebuilt_input"]},
            "arxiv_shape",
            r"byte_books\[0\]\.methods: 'other' has no byte book.* under measurements",
        ),
        ({"policy": "full"}, "digits", r"byte_books\[0\]\.graphs\[0\]: got 'digits'"),
    ],
)
def test_a_byte_book_needs_a_layout_and_a_shape_that_are_known(
    config, method, graph, message
):
    config["methods"]["other"] = {"label": "other", **method}
    entry = {"graphs": [graph], "models": ["sage-2x8"], "methods": ["fp32", "other"]}
    config["byte_books"] = [entry]
    with pytest.raises(ConfigurationError, match=message):
        check(config)


FEATURES = {"graphs": ["digits"], "models": ["gcn"]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"candidate_bits": [1, 4], "uniform_bits": []},
            "candidate_bits: expected 32 among them, which meets any max_drop; "
            "got [1, 4]",
        ),
        (
            {"candidate_bits": [1, 32], "uniform_bits": []},
            "least_attention_bits: expected one of candidate_bits, [1, 32]; got 4",
        ),
        (
            {"candidate_bits": [4, 32], "uniform_bits": [2]},
            "uniform_bits: expected widths of candidate_bits, [4, 32]; got 2",
        ),
        (
            {"candidate_bits": [4, 32], "uniform_bits": [], "equal_bits": 2},
            "equal_bits: expected widths of candidate_bits, [4, 32]; got 2",
        ),
        (
            {"tuned_uniform_bits": [8]},
            "tuned_uniform_bits: expected widths of uniform_bits, [4, 2, 1]; got 8",
        ),
        (
            {"tuned_uniform_bits": [1], "fine_tuning_epochs": 0},
            "fine_tuning_epochs: expected at least 1, because tuned_uniform_bits asks "
            "for fine-tuning; got 0",
        ),
        ({"models": ["sage"]}, "models[0]: got 'sage'; allowed: gcn, agnn, gat"),
        (
            {"max_drop": -1},
            "max_drop: expected a number at least 0 and at most 100, got -1",
        ),
        (
            {"candidate_bits": [4.0, 32]},
            "candidate_bits[0]: expected `1`, `2`, `4`, `8`, `16`, `32`, got 4.0",
        ),
        (
            {"seeds": 1001},
            "seeds: expected an integer at least 1 and at most 1000, got 1001",
        ),
    ],
)
def test_feature_bits_say_what_does_not_fit(config, settings, message):
    config["feature_bits"] = [FEATURES | settings]
    with pytest.raises(ConfigurationError) as error:
        check(config)
    assert str(error.value).splitlines() == [f"feature_bits[0].{message}"]


def test_a_place_of_feature_bits_occurs_once(config):
    config["feature_bits"] = [FEATURES, FEATURES]
    with pytest.raises(ConfigurationError, match="digits-gcn occurs 2 times"):
        check(config)


SEARCHES = {
    "graphs": ["digits"],
    "models": ["sage-2x8"],
    "training": {"epochs": 3},
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_drop": None},
            ": expected max_drop or max_memory or both, got null for both",
        ),
        (
            {"rows_per_block": [8, 4]},
            ".rows_per_block: expected multiples of 8, because under lean a byte holds "
            "the 1-bit codes of as many rows; got 4",
        ),
        ({"models": ["sage"]}, ".models: 'sage' is not among the models; "),
        ({"models": ["flat"]}, ".models: 'flat' has no hidden layer that could be"),
        ({"methods": ["fp23"]}, ".methods: 'fp23' is not among the methods; did you"),
        (
            {"methods": ["fp32"]},
            ".methods: 'fp32' is full precision, which is measured",
        ),
        (
            {"models": ["deep"], "bits": [1, 2, 4, 8]},
            ": expected at most 5000 settings to select from, got 61440 for 'deep'; ",
        ),
        (
            {"models": ["deepest"]},
            ": expected at most 5000 settings to select from, got far more for 'deepe",
        ),
        ({"strategies": ["greedy"]}, ".strategies[0]: got 'greedy'; allowed: random,"),
        ({"max_memory": 0}, ".max_memory: expected a number or null above 0 and at"),
        ({"objective": "time"}, ".objective: got 'time'; allowed: saved, peak"),
    ],
)
def test_activation_searches_say_what_does_not_fit(config, settings, message):
    small = config["models"]["sage-2x8"]
    config["models"] |= {
        "flat": small | {"num_layers": 1},
        "deepest": small | {"num_layers": 1000},
        "deep": small | {"num_layers": 7},
    }
    config["activation_searches"] = [SEARCHES | settings]
    with pytest.raises(ConfigurationError) as error:
        check(config)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"activation_searches[0]{message}")


def test_rows_of_the_published_layout_need_fill_no_byte(config):
    entry = SEARCHES | {"policies": ["exact"], "rows_per_block": [1, 3]}
    config["activation_searches"] = [entry]
    filled = check(check(config))["activation_searches"][0]
    assert filled["rows_per_block"] == [1, 3]
    assert (filled["rounds"], filled["objective"]) == (5, "saved")
    config["activation_searches"] = [entry, entry]
    with pytest.raises(ConfigurationError, match="digits-sage-2x8 occurs 2 times"):
        check(config)


def test_byte_books_may_be_the_only_thing_asked_for(config):
    entry = {"graphs": ["products_shape"], "models": ["sage-2x8"], "methods": ["fp32"]}
    config.update(sweeps=[], byte_books=[entry])
    assert run_specs(check(config)) == []
    assert check(config)["byte_books"][0]["training"]["loss"] == "cross_entropy"
    config["byte_books"].append(entry)
    with pytest.raises(ConfigurationError, match="products_shape-sage-2x8-fp32 occurs"):
        check(config)


def test_the_graphs_of_byte_books_are_those_whose_counts_are_known():
    names = SCHEMA["$defs"]["byte_book"]["properties"]["graphs"]["items"]["enum"]
    assert names == list(GRAPH_SIZES)
