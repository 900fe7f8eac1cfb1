"""A graph of one's own in the workflow: planned, read, trained, read again."""

import json
import os
import re

import numpy as np
import pytest
import torch
import yaml
from checkouts import ROOT, planned, snakemake
from made_up_own_graphs import as_tensors, sound_arrays
from torch_geometric.data import Data

from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.graphs.files import read_graph
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
  mine: {path: data/mine.pt}
  ring:
    path: data/ring
    undirected: true
    split: {train: 0.4, val: 0.3, seed: 1}
models:
  sage-2x8: {layer: sage, num_layers: 2, hidden: 8}
methods:
  int2: {label: INT2, policy: exact, bits: 2}
sweeps:
  - graphs: [mine, ring]
    models: [sage-2x8]
    methods: [int2]
    seeds: 1
    training: {epochs: 3}
"""
RUN = "results/own/runs/mine-sage-2x8-int2-s0to0.nc"
TARGETS = (RUN, "results/own/graphs/ring.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own graphs")
    (folder / "config").mkdir()
    (folder / "data").mkdir()
    (folder / "config" / "config.yaml").write_text(CONFIGURATION, encoding="utf-8")
    graph = synthetic_graph(num_nodes=60, num_edges=240)
    arrays = arrays_of(graph)
    torch.save(Data(**as_tensors(arrays)), folder / "data" / "mine.pt")
    write_ring(folder / "data" / "ring")
    return folder


def arrays_of(graph):
    """The graph as a user may hold it."""
    adjacency = graph.adjacency
    masks = {}
    parts = ("train_mask", "val_mask", "test_mask")
    for name, nodes in zip(parts, graph.splits.values(), strict=True):
        masks[name] = np.isin(np.arange(graph.num_nodes), nodes)
    target = np.repeat(np.arange(graph.num_nodes), adjacency.degree)
    return {
        "x": graph.features.numpy(),
        "y": graph.labels.numpy(),
        "edge_index": np.stack([adjacency.column.numpy(), target]),
        **masks,
    }


def write_ring(folder):
    """Six nodes, each edge in one direction, as tables without a split."""
    tables = {
        "edges": ["source,target", *(f"{i},{(i + 1) % 6}" for i in range(6))],
        "features": ["a,b", *(f"{i}.5,1" for i in range(6))],
        "labels": ["label", *(f"{i % 2}" for i in range(6))],
    }
    folder.mkdir()
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")


def options(folder):
    return "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)


@pytest.fixture(scope="module")
def trained(folder):
    """The folder after the real scripts have read both graphs and trained on one."""
    assert planned(*options(folder), *TARGETS) == {"read_own_graph": 2, "train_run": 1}
    snakemake(*options(folder), "--cores", "2", *TARGETS)
    return folder


@pytest.mark.slow
def test_a_file_is_trained_as_the_graph_it_holds(trained):
    """Record and graph are those of the library without any file."""
    graph = synthetic_graph(num_nodes=60, num_edges=240)
    record = read_dataset(trained / RUN)
    spec = RunSpec.from_json(json.loads(record.attrs["spec"]))
    expected = train_run(spec, Job(graph))
    for name in ("test_accuracy", "loss_curve"):
        np.testing.assert_array_equal(record[name], expected[name])
    ring = read_graph(trained / "results/own/graphs/ring.npz")
    assert ring.adjacency.symmetric
    assert ring.adjacency.degree.tolist() == [2] * 6
    assert [len(nodes) for nodes in ring.splits.values()] == [2, 2, 2]
    log = (trained / "results/own/logs/read_own_graph/ring.log").read_text("utf-8")
    assert "ring: edge_index: 6 edges became 12" in log


@pytest.mark.slow
def test_a_file_is_read_again_when_its_content_changed_whatever_its_date(trained):
    path = trained / "data" / "mine.pt"
    whole = path.read_bytes()
    assert not planned(*options(trained), *TARGETS)
    other = arrays_of(synthetic_graph(num_nodes=60, num_edges=240, seed=1))
    try:
        torch.save(Data(**as_tensors(other)), path)
        os.utime(path, (1, 1))
        again = {"read_own_graph": 1, "train_run": 1}
        assert planned(*options(trained), *TARGETS) == again
    finally:
        path.write_bytes(whole)
        os.utime(path, (1, 1))
    assert not planned(*options(trained), *TARGETS), "the same content, another date"


@pytest.mark.slow
def test_a_word_of_the_configuration_reads_its_graph_again(trained):
    path = trained / "mine.yaml"
    path.write_text(CONFIGURATION.replace("seed: 1", "seed: 2"), encoding="utf-8")
    again = planned(*options(trained), *TARGETS, "--configfile", str(path))
    assert again == {"read_own_graph": 1}


@pytest.mark.slow
def test_a_split_that_joins_the_tables_is_read(trained):
    path = trained / "data" / "ring" / "split.csv"
    path.write_text("split\n" + "train\nval\ntest\n" * 2, encoding="utf-8")
    try:
        assert planned(*options(trained), *TARGETS) == {"read_own_graph": 1}
    finally:
        path.unlink()


@pytest.mark.slow
def test_a_faulty_file_is_refused_before_it_is_trained(folder, tmp_path):
    arrays = sound_arrays() | {"y": np.full(6, -1)}
    torch.save(as_tensors(arrays), tmp_path / "mine.pt")
    text = CONFIGURATION.replace("data/mine.pt", "mine.pt")
    text = text.replace("data/ring", f"{folder}/data/ring")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text(text, encoding="utf-8")
    said = snakemake(*options(tmp_path), "--cores", "1", RUN, exit_status=1)
    assert "graphs.mine, read from mine.pt: y: expected classes counted from 0" in said
    assert "rule train_run" not in said
    assert not (tmp_path / RUN).exists()


def test_a_missing_file_is_told_when_jobs_are_planned(tmp_path):
    (tmp_path / "config").mkdir()
    path = tmp_path / "config" / "config.yaml"
    path.write_text(CONFIGURATION, encoding="utf-8")
    said = snakemake(*options(tmp_path), "--dry-run", exit_status=1)
    for name in ("mine.pt", "ring"):
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
