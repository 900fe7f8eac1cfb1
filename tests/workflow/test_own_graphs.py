"""A graph of one's own in the workflow: planned, read, trained, read again."""

import json
import os
import re

import numpy as np
import pytest
import torch
import yaml
from checkouts import ROOT, planned, snakemake
from made_up_own_graphs import as_tensors
from torch_geometric.data import Data

from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.graphs.own.given import GivenGraph
from pipeline_src.graphs.own.reading import read_own_graph
from pipeline_src.records.datasets import read_dataset
from pipeline_src.training.job import Job
from pipeline_src.training.runs import train_run
from pipeline_src.training.spec import RunSpec

CONFIGURATION = """
run: own
device: cpu
compile: false
graphs:
  mine: {path: data/mine.pt, undirected: true}
  torn: {path: data/torn, split: {train: 0.6, val: 0.2}}
models:
  sage-2x8: {layer: sage, num_layers: 2, hidden: 8}
methods:
  int2: {label: INT2, policy: exact, bits: 2}
sweeps:
  - graphs: [mine, torn]
    models: [sage-2x8]
    methods: [int2]
    seeds: 1
    training: {epochs: 3}
"""
RUN, TORN = (
    f"results/own/runs/{graph}-sage-2x8-int2-s0to0.nc" for graph in ("mine", "torn")
)


def write_tables(folder):
    """Two nodes, of which one has no class."""
    folder.mkdir()
    tables = {"edges": "source,target\n0,1\n1,0", "features": "a\n0\n1"}
    for name, text in (tables | {"labels": "label\n0\n?"}).items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")


def arrays_of(graph):
    """The graph as a user may hold it: each edge in one direction."""
    adjacency = graph.adjacency
    masks = {}
    parts = ("train_mask", "val_mask", "test_mask")
    for name, nodes in zip(parts, graph.splits.values(), strict=True):
        masks[name] = np.isin(np.arange(graph.num_nodes), nodes)
    source = adjacency.column.numpy()
    target = np.repeat(np.arange(graph.num_nodes), adjacency.degree)
    return {
        "x": graph.features.numpy(),
        "y": graph.labels.numpy(),
        "edge_index": np.stack([source, target])[:, source < target],
        **masks,
    }


def options(folder):
    return "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder in which the real scripts have run, and what they said."""
    folder = tmp_path_factory.mktemp("own graphs")
    (folder / "config").mkdir()
    (folder / "data").mkdir()
    (folder / "config" / "config.yaml").write_text(CONFIGURATION, encoding="utf-8")
    arrays = arrays_of(synthetic_graph(num_nodes=60, num_edges=240))
    torch.save(Data(**as_tensors(arrays)), folder / "data" / "mine.pt")
    write_tables(folder / "data" / "torn")
    targets = (*options(folder), RUN, TORN)
    said = snakemake("--cores", "2", *targets, exit_status=1)  # one of them is torn
    return folder, said


@pytest.mark.slow
def test_a_file_is_trained_as_the_graph_it_holds(trained):
    """The record is that of the library without any file."""
    folder, _ = trained
    record = read_dataset(folder / RUN)
    spec = RunSpec.from_json(json.loads(record.attrs["spec"]))
    expected = train_run(spec, Job(synthetic_graph(num_nodes=60, num_edges=240)))
    for name in ("test_accuracy", "loss_curve"):
        np.testing.assert_array_equal(record[name], expected[name])
    log = (folder / "results/own/logs/read_own_graph/mine.log").read_text("utf-8")
    assert "mine: edge_index: 120 edges became 240" in log


@pytest.mark.slow
def test_a_faulty_file_is_refused_before_it_is_trained(trained):
    folder, said = trained
    fault = "labels.csv: expected whole numbers in column 'label', got '?' in line 3"
    assert f"graphs.torn, read from data/torn: {fault}" in said
    assert planned(*options(folder), TORN) == {"read_own_graph": 1, "train_run": 1}
    assert not list((folder / "results/own/logs/train_run").glob("torn*"))


@pytest.mark.slow
def test_a_file_is_read_again_when_its_content_changed_whatever_its_date(trained):
    folder, _ = trained
    path = folder / "data" / "mine.pt"
    whole = path.read_bytes()
    other = arrays_of(synthetic_graph(num_nodes=60, num_edges=240, seed=1))
    try:
        torch.save(Data(**as_tensors(other)), path)
        os.utime(path, (1, 1))
        again = {"read_own_graph": 1, "train_run": 1}
        assert planned(*options(folder), RUN) == again
    finally:
        path.write_bytes(whole)
        os.utime(path, (1, 1))
    assert not planned(*options(folder), RUN), "the same content, another date"


@pytest.mark.slow
def test_a_word_of_the_configuration_reads_its_graph_again(trained):
    folder, _ = trained
    path = folder / "mine.yaml"
    path.write_text(
        CONFIGURATION.replace("undirected: true", "undirected: false"), "utf-8"
    )
    again = planned(*options(folder), RUN, "--configfile", str(path))
    assert again == {"read_own_graph": 1, "train_run": 1}


def test_a_missing_file_is_told_when_jobs_are_planned(tmp_path):
    (tmp_path / "config").mkdir()
    path = tmp_path / "config" / "config.yaml"
    path.write_text(CONFIGURATION, encoding="utf-8")
    said = snakemake(*options(tmp_path), "--dry-run", exit_status=1)
    for name in ("mine.pt", "torn"):
        place = tmp_path / "data" / name
        assert f".path: expected a file or a folder, got none at {place}; " in said
    assert "Traceback" not in said


def test_the_pages_file_and_configuration_are_planned(checkout, monkeypatch):
    """What the tutorial shows, as it stands, over the default configuration."""
    page = (ROOT / "docs" / "tutorial" / "own-graph.md").read_text(encoding="utf-8")
    program, configuration = (
        re.search(rf"```{language}\n(.*?)```", page, re.S)[1]
        for language in ("python", "yaml")
    )
    monkeypatch.chdir(checkout)
    exec(program, {})
    (checkout / "mine.yaml").write_text(configuration, encoding="utf-8")
    jobs = planned("--configfile", "mine.yaml", cwd=checkout)
    assert (jobs["read_own_graph"], jobs["train_run"]) == (1, 1)
    assert "prepare_graph" not in jobs
    entry = yaml.safe_load(configuration)["graphs"]["mine"]
    graph, _ = read_own_graph("mine", GivenGraph.from_params(entry))
    assert graph.adjacency.num_entries == 1200
