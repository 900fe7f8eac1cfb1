"""Graphs of one's own in a configuration: what they ask for, each fault in a line."""

import copy
from pathlib import Path

import pytest

from pipeline_src.configuration.checks import (
    ConfigurationError,
    checked_configuration,
    read_schema,
)
from pipeline_src.configuration.plans import run_specs
from pipeline_src.graphs.own.given import (
    GivenGraph,
    GivenSplit,
    digest_of_files,
    given_files,
)

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = read_schema(ROOT / "workflow" / "schemas" / "config.schema.yaml")
SPLIT = {"train": 0.6, "val": 0.2}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """One that trains `mine`, whose file lies in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.pt").touch()
    return {
        "run": "small",
        "graphs": {"mine": {"path": "data.pt"}},
        "models": {"sage": {"layer": "sage", "num_layers": 2, "hidden": 8}},
        "methods": {"fp32": {"label": "FP32", "policy": "full"}},
        "sweeps": [
            {
                "graphs": ["mine", "digits"],
                "models": ["sage"],
                "methods": ["fp32"],
                "training": {"epochs": 2},
            }
        ],
    }


def check(config):
    return checked_configuration(config, SCHEMA)


def refusal(config):
    with pytest.raises(ConfigurationError) as told:
        check(config)
    return str(told.value)


def test_a_graph_of_ones_own_is_trained_beside_those_that_are_there(config):
    before = copy.deepcopy(SCHEMA)
    filled = check(config)
    assert [spec.graph for spec in run_specs(filled)] == ["mine", "digits"]
    assert filled["graphs"]["mine"] == {
        "path": "data.pt",
        "undirected": None,
        "repeated_edges": "refuse",
        "self_loops": "refuse",
        "unlabeled": "refuse",
        "ignore": [],
        "split": None,
    }
    assert check(filled) == filled
    assert before == SCHEMA, "names of one configuration are unknown to the next"


def test_no_graphs_of_ones_own_is_the_default(config):
    del config["graphs"]
    assert refusal(config).startswith(
        "sweeps[0].graphs[0]: got 'mine'; allowed: digits"
    )
    config["sweeps"][0]["graphs"] = ["digits"]
    assert check(config)["graphs"] == {}


def test_defaults_of_the_schema_are_those_of_the_library(config):
    filled = check(config)["graphs"]["mine"]
    assert GivenGraph.from_params(filled) == GivenGraph("data.pt")
    config["graphs"]["mine"]["split"] = dict(SPLIT)
    given = GivenGraph.from_params(check(config)["graphs"]["mine"])
    assert given == GivenGraph("data.pt", split=GivenSplit(0.6, 0.2, 0, None))
    assert GivenGraph.from_params(given.to_params()) == given


def test_every_section_that_reads_graphs_takes_them(config):
    everything = {"graphs": ["mine"], "models": ["sage"], "methods": ["fp32"]}
    config["measurements"] = [everything]
    config["feature_bits"] = [{"graphs": ["mine"], "models": ["gcn"]}]
    check(config)
    config["byte_books"] = [everything]
    assert "byte_books[0].graphs[0]: got 'mine'; allowed: " in refusal(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cora", "graphs.cora: expected a name of its own, because cora is a graph"),
        ("digits", "graphs.digits: expected a name of its own"),
        ("my-graph", "letters, digits and underscores between them (such as my_graph)"),
        ("My", "letters, digits and underscores between them"),
        ("a\n", "letters, digits and underscores between them"),
        ("../a", "letters, digits and underscores between them"),
    ],
)
def test_a_name_that_cannot_be_is_refused(config, name, message):
    config["graphs"][name] = {"path": "data.pt"}
    assert message in refusal(config)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "graphs.mine.path: is missing and has no default"),
        ({"path": "none.pt"}, "expected a file or a folder, got none at {folder}/none"),
        ({"path": "a.csv"}, "path: expected a file that ends in .pt or .npz, or a f"),
        ({"path": "."}, "mine.path: expected a table edges.csv, got none in {folder}"),
        ({"path": "folder.pt"}, "path: expected a file, got a folder or a device at"),
        ({"path": "{graph}.pt"}, "path: expected a path without {{ }} < and >"),
        ({"path": "<results>.pt"}, "Snakemake takes for names to fill in, got < >"),
        ({"path": "~nobody_of_this_name/a.pt"}, "expected a path that can be looked"),
        ({"path": "a" * 300 + ".pt"}, "graphs.mine.path: expected a "),
        ({"path": "a\0.pt"}, "path: expected one line of characters"),
        ({"paht": "data.pt"}, "graphs.mine.paht: unknown key; did you mean 'path'?"),
        ({"path": "data.pt", "undirected": "yes"}, "mine.undirected: expected true or"),
        ({"path": "data.pt", "self_loops": "drop"}, "allowed: refuse, keep, remove"),
        ({"path": "data.pt", "split": {}}, "split: expected shares for train and val"),
        (
            {"path": "data.pt", "split": {"train": 0.5}},
            "graphs.mine.split.val: is missing; train and val go together",
        ),
        (
            {"path": "data.pt", "split": {"train": 0.5, "val": 0.5}},
            "mine.split: expected train + val below 1, because the rest tests, got 1.0",
        ),
        (
            {"path": "data.pt", "split": {**SPLIT, "column": 3}},
            "graphs.mine.split.column: means nothing with train and val",
        ),
        (
            {"path": "data.pt", "split": {"column": 3, "seed": 2}},
            "graphs.mine.split.seed: means nothing with column",
        ),
        (
            {"path": "data.pt", "split": {"train": 0, "val": 0.2}},
            "graphs.mine.split.train: expected a number or null above 0 and below 1",
        ),
    ],
)
def test_a_fault_is_told_before_anything_runs(config, tmp_path, entry, message):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "a.csv").touch()
    config["graphs"]["mine"] = entry
    assert message.format(folder=tmp_path) in refusal(config)


def test_paths_lie_where_the_configuration_says(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "data.npz").touch()
    for path, file in {
        "./data.pt": "data.pt",
        "~/data.npz": str(tmp_path / "home" / "data.npz"),
        str(tmp_path / "data.pt"): str(tmp_path / "data.pt"),
    }.items():
        config["graphs"]["mine"]["path"] = path
        check(config)
        assert given_files(GivenGraph(path)) == [file]


def test_a_folder_is_read_from_its_tables_and_a_split_if_there_is_one(config, tmp_path):
    config["graphs"]["mine"]["path"] = "tables"
    assert "expected a file or a folder, got none at" in refusal(config)
    (tmp_path / "tables").mkdir()
    tables = ["tables/edges.csv", "tables/features.csv", "tables/labels.csv"]
    for table in tables:
        assert f"expected a table {Path(table).name}, got none in" in refusal(config)
        (tmp_path / table).touch()
    check(config)
    assert given_files(GivenGraph("tables")) == tables
    (tmp_path / "tables" / "split.csv").touch()
    assert given_files(GivenGraph("tables")) == [*tables, "tables/split.csv"]


def test_a_digest_knows_contents_and_not_dates(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"a")
    missing = digest_of_files([str(one), str(other)])
    other.write_bytes(b"")
    both = digest_of_files([str(one), str(other)])
    assert missing != both
    one.touch()
    assert digest_of_files([str(one), str(other)]) == both
    one.write_bytes(b"b")
    assert digest_of_files([str(one), str(other)]) != both
