"""Readers of raw files against the loaders of torch_geometric and ogb."""

import gzip
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_archives import (
    published,
    write_flickr,
    write_gnn_benchmark,
    write_ogbn_arxiv,
    write_planetoid,
    write_reddit,
)

from pipeline_src.graphs import files as graph_files
from pipeline_src.graphs import raw
from pipeline_src.graphs.files import read_graph, write_graph
from pipeline_src.graphs.graph import Graph
from pipeline_src.graphs.plain_pickles import read_plain_pickle
from pipeline_src.graphs.raw import (
    read_flickr,
    read_gnn_benchmark,
    read_planetoid,
    read_raw_graph,
    read_reddit,
)
from pipeline_src.graphs.raw_sources import RAW_SOURCES


def loader_copy(folder: Path, root: Path) -> Path:
    """The loaders write beside the raw files, so they get links to them."""
    shutil.copytree(
        folder / "raw", root / folder.name / "raw", copy_function=os.symlink
    )
    return root


def edges_of(graph: Graph) -> set[tuple[int, int]]:
    """Pairs (from, to), as torch_geometric's edge_index lists them."""
    adjacency = graph.adjacency
    receiver = torch.repeat_interleave(
        torch.arange(graph.num_nodes), adjacency.degree.long()
    )
    return set(zip(adjacency.column.tolist(), receiver.tolist(), strict=True))


def assert_equals_loader(graph: Graph, data, split: bool = True) -> None:
    assert torch.equal(graph.features, data.x)
    assert torch.equal(graph.labels, data.y.view(-1))
    assert edges_of(graph) == set(map(tuple, data.edge_index.T.tolist()))
    if split:
        for index, mask in (
            (graph.train_index, data.train_mask),
            (graph.validation_index, data.val_mask),
            (graph.test_index, data.test_mask),
        ):
            assert torch.equal(index, mask.nonzero().view(-1))


@pytest.fixture(scope="module")
def loaders():
    """torch_geometric's data sets: slow to import."""
    return pytest.importorskip("torch_geometric.datasets")


@pytest.mark.parametrize("gaps", [0, 7])
def test_made_up_planetoid_equals_the_loader(loaders, tmp_path, gaps):
    name = "CiteSeer" if gaps else "Cora"  # the loader fills gaps for CiteSeer only
    write_planetoid(tmp_path / name, name.lower(), gaps)
    graph = read_planetoid(name.lower(), tmp_path / name, normalize_rows=False)
    assert_equals_loader(graph, loaders.Planetoid(str(tmp_path), name)[0])
    assert graph.adjacency.symmetric


def test_planetoid_rows_are_normalized_as_by_the_transform(loaders, tmp_path):
    transforms = pytest.importorskip("torch_geometric.transforms")
    write_planetoid(tmp_path / "Cora", "cora")
    data = loaders.Planetoid(
        str(tmp_path), "Cora", transform=transforms.NormalizeFeatures()
    )[0]
    features = read_raw_graph("cora", tmp_path / "Cora").features
    # 30 terms are summed, in an order of each library's own, and divided once.
    bound = 32 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(features, data.x, rtol=bound, atol=0)


@pytest.mark.parametrize(
    ("loader", "source"), [("Amazon", "Photo"), ("Coauthor", "Physics")]
)
def test_made_up_gnn_benchmark_equals_the_loader(loaders, tmp_path, loader, source):
    (file,) = RAW_SOURCES[source].files
    write_gnn_benchmark(tmp_path / source, Path(file.path).name)
    graph = read_raw_graph(RAW_SOURCES[source].graph, tmp_path / source)
    data = getattr(loaders, loader)(str(tmp_path), source)[0]
    assert_equals_loader(graph, data, split=False)
    assert set(graph.features.unique().tolist()) == {0, 1}
    assert [len(i) for i in (graph.train_index, graph.test_index)] == [48, 16]
    assert graph.adjacency.symmetric
    again = read_raw_graph(RAW_SOURCES[source].graph, tmp_path / source)
    assert torch.equal(graph.train_index, again.train_index)


def test_made_up_flickr_equals_the_loader(loaders, tmp_path):
    write_flickr(tmp_path)
    graph = read_flickr("flickr", tmp_path)
    assert_equals_loader(graph, loaders.Flickr(str(tmp_path))[0])
    assert graph.adjacency.symmetric
    assert graph.num_classes == 7


def test_made_up_reddit_equals_the_loader(loaders, tmp_path):
    """Edges one way stay so, and the transpose is kept beside them."""
    write_reddit(tmp_path)
    graph = read_reddit("reddit", tmp_path)
    assert_equals_loader(graph, loaders.Reddit(str(tmp_path))[0])
    assert not graph.adjacency.symmetric
    assert [len(i) for i in (graph.train_index, graph.test_index)] == [40, 20]
    assert graph.num_classes == 6


OGB_LOADER = """
import sys
import numpy as np
import torch
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import GlobalStorage
from torch_geometric.utils import to_undirected

torch.serialization.add_safe_globals([DataEdgeAttr, DataTensorAttr, GlobalStorage])
from ogb.nodeproppred import PygNodePropPredDataset

dataset = PygNodePropPredDataset("ogbn-arxiv", sys.argv[1])
data, split = dataset[0], dataset.get_idx_split()
np.savez(sys.argv[2], x=data.x, y=data.y, edges=to_undirected(data.edge_index), **split)
"""


def test_made_up_ogbn_arxiv_equals_ogb(tmp_path):
    """Ogb in a process of its own: it starts a thread that asks for news of itself."""
    write_ogbn_arxiv(tmp_path / "ogbn_arxiv")
    nobody = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    loaded = subprocess.run(
        [sys.executable, "-c", OGB_LOADER, str(tmp_path), str(tmp_path / "ogb.npz")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | nobody,
        timeout=120,
    )
    assert loaded.returncode == 0, loaded.stderr
    graph = read_raw_graph("ogbn_arxiv", tmp_path / "ogbn_arxiv")
    with np.load(tmp_path / "ogb.npz") as oracle:
        np.testing.assert_array_equal(graph.features, oracle["x"])
        np.testing.assert_array_equal(graph.labels, oracle["y"].ravel())
        assert edges_of(graph) == set(map(tuple, oracle["edges"].T.tolist()))
        np.testing.assert_array_equal(graph.train_index, oracle["train"])
        np.testing.assert_array_equal(graph.validation_index, oracle["valid"])
        np.testing.assert_array_equal(graph.test_index, oracle["test"])
    assert graph.adjacency.symmetric


@pytest.mark.parametrize(
    ("source", "counts", "split"),
    [
        ("Cora", (2_708, 10_556, 1_433, 7), (140, 500, 1_000)),
        ("CiteSeer", (3_327, 9_104, 3_703, 6), (120, 500, 1_000)),
        ("PubMed", (19_717, 88_648, 500, 3), (60, 500, 1_000)),
        ("Computers", (13_752, 491_722, 767, 10), (8_252, 2_750, 2_750)),
    ],
)
def test_real_files_have_the_published_counts(source, counts, split, tmp_path):
    """Counts, splits, and that the prepared file holds wide features sparse."""
    graph = read_raw_graph(source.lower(), published(source))
    assert counts == (
        graph.num_nodes,
        graph.adjacency.num_entries,
        graph.num_features,
        graph.num_classes,
    )
    indices = graph.train_index, graph.validation_index, graph.test_index
    assert split == tuple(len(index) for index in indices)
    write_graph(graph, tmp_path / "graph.npz")
    assert torch.equal(read_graph(tmp_path / "graph.npz").features, graph.features)
    assert (tmp_path / "graph.npz").stat().st_size < 0.8 * graph.nbytes


@pytest.mark.parametrize("source", ["Cora", "CiteSeer"])
def test_real_planetoid_equals_the_loader(loaders, tmp_path, source):
    folder = published(source)
    root = str(loader_copy(folder, tmp_path))
    graph = read_planetoid(source.lower(), folder, normalize_rows=False)
    assert_equals_loader(graph, loaders.Planetoid(root, source)[0])


def test_real_amazon_equals_the_loader(loaders, tmp_path):
    folder = published("Computers")
    data = loaders.Amazon(str(loader_copy(folder, tmp_path)), "Computers")[0]
    graph = read_gnn_benchmark("computers", folder)
    assert_equals_loader(graph, data, split=False)


def test_real_arxiv_labels_and_split_with_made_up_edges(tmp_path):
    """Edges and features are not at hand: stand-ins of the true number of nodes."""
    partial = published("ogbn_arxiv_partial")
    folder = tmp_path / "ogbn_arxiv"
    shutil.copytree(partial, folder, copy_function=os.symlink)
    num_nodes = 169_343
    edges = np.random.default_rng(0).integers(0, num_nodes, (1000, 2))
    np.savetxt(folder / "raw" / "edge.csv.gz", edges, fmt="%d", delimiter=",")
    np.savetxt(folder / "raw" / "node-feat.csv.gz", np.zeros(num_nodes), fmt="%d")
    graph = read_raw_graph("ogbn_arxiv", folder)
    assert (graph.num_nodes, graph.num_classes) == (num_nodes, 40)
    indices = graph.train_index, graph.validation_index, graph.test_index
    assert [len(index) for index in indices] == [90_941, 29_799, 48_603]


class Malicious:
    """Unpickled without care, makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {0: [x]}, lambda x: [1, x]])
def test_a_malicious_pickle_is_refused_and_does_not_execute(tmp_path, wrap):
    write_planetoid(tmp_path / "Cora", "cora")
    marker = tmp_path / "executed"
    content = pickle.dumps(wrap(Malicious(marker)), protocol=2)
    (tmp_path / "Cora" / "raw" / "ind.cora.graph").write_bytes(content)
    with pytest.raises(ValueError, match="which could execute code"):
        read_raw_graph("cora", tmp_path / "Cora")
    assert not marker.exists()
    pickle.loads(content)  # the test means something: a careless reader executes it
    assert marker.exists()


@pytest.mark.parametrize("function", [eval, getattr, os.system, np.load, __import__])
def test_no_function_is_admitted(tmp_path, function):
    path = tmp_path / "pickle"
    path.write_bytes(pickle.dumps(function))
    with pytest.raises(ValueError, match="expected only"):
        read_plain_pickle(path)


WRITERS = {
    "cora": lambda folder: write_planetoid(folder, "cora"),
    "photo": lambda folder: write_gnn_benchmark(folder, "photo.npz"),
    "flickr": write_flickr,
    "ogbn_arxiv": write_ogbn_arxiv,
}


@pytest.mark.parametrize("graph", WRITERS)
def test_damaged_raw_files_are_named_with_a_way_out(tmp_path, graph):
    """Each file in turn cut in the middle: never a graph, never a stray exception."""
    folder = tmp_path / "sound"
    WRITERS[graph](folder)
    read_raw_graph(graph, folder)
    unread = {
        "node_year.csv.gz",
        "num-edge-list.csv.gz",
        "RELEASE_v1.txt",
        "ind.cora.x",
    }
    files = [f for f in folder.rglob("*") if f.is_file() and f.name not in unread]
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=f"sound raw files of {graph}: .* Delete"):
            read_raw_graph(graph, folder)
        file.unlink()
        with pytest.raises((FileNotFoundError, ValueError)):
            read_raw_graph(graph, folder)
        file.write_bytes(content)


def test_raw_files_that_unpack_without_end_are_refused(tmp_path, monkeypatch):
    write_ogbn_arxiv(tmp_path / "arxiv")
    path = tmp_path / "arxiv" / "raw" / "node-feat.csv.gz"
    path.write_bytes(gzip.compress(b"0\n" * 500_000))
    assert path.stat().st_size < 5_000
    monkeypatch.setattr(raw, "MAX_TEXT_BYTES", 100_000)
    with pytest.raises(ValueError, match="unpacks to more than 100000 bytes"):
        read_raw_graph("ogbn_arxiv", tmp_path / "arxiv")
    for graph in ("photo", "flickr"):
        WRITERS[graph](tmp_path / graph)
        monkeypatch.setattr(graph_files, "MAX_ARRAY_BYTES", 1000)
        with pytest.raises(ValueError, match="arrays of at most 1000 bytes, got"):
            read_raw_graph(graph, tmp_path / graph)


@pytest.mark.parametrize("graph", ["photo", "flickr"])
def test_pickled_objects_in_raw_arrays_are_not_loaded(tmp_path, graph):
    """In the place of labels and of features: nothing executes."""
    WRITERS[graph](tmp_path)
    marker = tmp_path / "executed"
    objects = np.array([Malicious(marker)], dtype=object)
    if graph == "flickr":
        np.save(tmp_path / "raw" / "feats.npy", objects)
    else:
        with np.load(tmp_path / "raw" / "photo.npz") as file:
            arrays = {name: file[name] for name in file.files if name != "class_names"}
        np.savez(tmp_path / "raw" / "photo.npz", **(arrays | {"labels": objects}))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        read_raw_graph(graph, tmp_path)
    assert not marker.exists()


def test_arrays_of_unequal_length_are_refused(tmp_path):
    write_ogbn_arxiv(tmp_path)
    np.savetxt(tmp_path / "raw" / "num-node-list.csv.gz", [49], fmt="%d")
    with pytest.raises(ValueError, match="says 49 nodes, got 50 rows of node-feat"):
        read_raw_graph("ogbn_arxiv", tmp_path)


def test_an_unknown_graph_is_named_beside_the_known(tmp_path):
    with pytest.raises(ValueError, match=r"one of \['citeseer', .*, got 'yelp'"):
        read_raw_graph("yelp", tmp_path)
