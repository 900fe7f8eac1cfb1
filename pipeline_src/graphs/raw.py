"""Raw files of published graphs -> Graph, with what torch_geometric's loaders give.

Features, labels, edges and public splits equal those of torch_geometric (Planetoid,
Amazon, Coauthor, Flickr, Reddit) and ogb (ogbn-arxiv), which the tests take as oracles.
Their classes are not used: they fetch without checksums, cache beside the raw files,
and ogb's asks questions on the terminal and loads pickles that torch refuses. Here the
raw files are read as data: nothing in them can execute.

Decisions:
* Planetoid features are row-normalised by default (`normalize_rows`), as in the
  common examples for these graphs; all others are left as their loaders give them.
* Amazon and Coauthor have no published split: 60/20/20 per class, from SPLIT_SEED.
* ogbn-arxiv is symmetrised, as in the experiments on compressed activations; Flickr
  and Reddit are taken as shipped.
"""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from pipeline_src.graphs.edges import whole_numbers
from pipeline_src.graphs.files import DAMAGE, refuse_large_archive
from pipeline_src.graphs.graph import (
    Adjacency,
    Graph,
    adjacency_from_edges,
    check_graph,
)
from pipeline_src.graphs.plain_pickles import read_plain_pickle
from pipeline_src.graphs.splits import index_tensor, stratified_split

PLANETOID_VALIDATION = 500  # nodes after the training nodes, in the public split
SPLIT_SEED = 0
PIECE = 1 << 20  # bytes read at once
MAX_TEXT_BYTES = 1 << 32  # of one table; ogbn-arxiv's features have 128 columns


def read_raw_graph(graph: str, folder: str | Path) -> Graph:
    """Read the named graph from the folder into which its source was fetched.

    Raises:
        ValueError: if the name is unknown, or the files are damaged or contradict
            each other.
        FileNotFoundError: if a file is missing.
    """
    if graph not in READERS:
        raise ValueError(f"graph must be one of {sorted(READERS)}, got {graph!r}")
    try:
        read = READERS[graph](graph, Path(folder))
        check_graph(read)
    except FileNotFoundError:
        raise
    except (*DAMAGE, ArithmeticError, AttributeError, LookupError) as error:
        raise ValueError(
            f"{folder} does not hold sound raw files of {graph}: {error}. "
            "Delete the folder and run snakemake again to fetch it anew."
        ) from error
    return read


def read_planetoid(graph: str, folder: Path, normalize_rows: bool = True) -> Graph:
    """Cora, CiteSeer or PubMed with the public split (Yang et al. 2016).

    The first nodes are those of `allx`, the training nodes at their head; then come
    the test nodes, stored in the shuffled order of `test.index`. CiteSeer's test
    nodes leave gaps: nodes without features, label or part in the split.

    With normalize_rows every row is divided by the larger of its sum and 1, as
    torch_geometric's NormalizeFeatures does to features that are not negative.
    """

    def part(name: str) -> Any:
        return read_plain_pickle(folder / "raw" / f"ind.{graph}.{name}")

    test = np.loadtxt(folder / "raw" / f"ind.{graph}.test.index", dtype=np.int64)
    known = part("allx")
    num_nodes = int(test.max()) + 1
    features = np.zeros((num_nodes, known.shape[1]), dtype=np.float32)
    features[: len(known)], features[test] = known, part("tx")
    one_hot = np.zeros((num_nodes, part("y").shape[1]), dtype=np.int64)
    one_hot[: len(known)], one_hot[test] = part("ally"), part("ty")
    if normalize_rows:
        features /= np.maximum(features.sum(axis=1, keepdims=True), 1)

    neighbors = part("graph")
    source = np.repeat(list(neighbors), [len(row) for row in neighbors.values()])
    target = np.concatenate([np.asarray(row) for row in neighbors.values()])
    no_loop = source != target
    num_train = len(part("y"))
    return Graph(
        name=graph,
        features=torch.from_numpy(features),
        labels=torch.from_numpy(one_hot.argmax(axis=1)),
        train_index=torch.arange(num_train),
        validation_index=torch.arange(num_train, num_train + PLANETOID_VALIDATION),
        test_index=index_tensor(test),
        adjacency=adjacency_from_edges(
            source[no_loop], target[no_loop], num_nodes, symmetrize=False
        ),
        num_classes=one_hot.shape[1],
    )


def read_gnn_benchmark(graph: str, folder: Path) -> Graph:
    """Amazon or Coauthor: one npz (Shchur et al. 2018), symmetrised, without loops.

    Positive features count as 1. The file may also hold names as pickled objects;
    only its numeric arrays are touched.
    """
    (path,) = (folder / "raw").glob("*.npz")
    refuse_large_archive(path)
    with np.load(path, allow_pickle=False) as file:
        edges, words = _stored_rows(file, "adj_"), _stored_rows(file, "attr_")
        labels = whole_numbers("labels", file["labels"])
    words.sum_duplicates()
    words.data[words.data > 0] = 1
    edges = edges.tocoo()
    no_loop = edges.row != edges.col
    return Graph(
        name=graph,
        features=torch.from_numpy(words.toarray()),
        labels=torch.from_numpy(labels),
        adjacency=adjacency_from_edges(
            edges.row[no_loop], edges.col[no_loop], len(labels)
        ),
        num_classes=int(labels.max()) + 1,
        **stratified_split(labels, SPLIT_SEED),
    )


def read_flickr(graph: str, folder: Path) -> Graph:
    """Flickr in the layout of GraphSAINT (Zeng et al. 2020), features as shipped."""
    raw = folder / "raw"
    refuse_large_archive(raw / "adj_full.npz")
    with np.load(raw / "adj_full.npz", allow_pickle=False) as file:
        edges = _stored_rows(file, "").tocoo()
    features = np.load(raw / "feats.npy", allow_pickle=False).astype(np.float32)
    class_of = json.loads((raw / "class_map.json").read_text(encoding="utf-8"))
    role = json.loads((raw / "role.json").read_text(encoding="utf-8"))
    labels = np.array([class_of[str(node)] for node in range(len(features))])
    adjacency = adjacency_from_edges(
        edges.row, edges.col, len(features), symmetrize=False
    )
    splits = [role[part] for part in ("tr", "va", "te")]
    return _split_graph(graph, features, labels, splits, adjacency)


def read_reddit(graph: str, folder: Path) -> Graph:
    """Reddit (Hamilton et al. 2017) in DGL's two files, features and edges as shipped.

    node_types says which nodes train (1), validate (2) and test (3).
    """
    raw = folder / "raw"
    with np.load(raw / "reddit_graph.npz", allow_pickle=False) as file:
        source, target = file["row"], file["col"]
    with np.load(raw / "reddit_data.npz", allow_pickle=False) as file:
        features = file["feature"].astype(np.float32)
        labels = whole_numbers("label", file["label"])
        node_types = file["node_types"]
    splits = [np.flatnonzero(node_types == kind) for kind in (1, 2, 3)]
    adjacency = adjacency_from_edges(source, target, len(features), symmetrize=False)
    return _split_graph(graph, features, labels, splits, adjacency)


def read_ogbn_arxiv(graph: str, folder: Path) -> Graph:
    """ogbn-arxiv (Hu et al. 2020) from its plain csv.gz files, split by time.

    One line per citation: paper that cites, paper that is cited. Both directions are
    taken.
    """
    edges = _table(folder / "raw" / "edge.csv.gz", np.int64)
    features = _table(folder / "raw" / "node-feat.csv.gz", np.float32)
    labels = _table(folder / "raw" / "node-label.csv.gz", np.int64)[:, 0]
    num_nodes = int(_table(folder / "raw" / "num-node-list.csv.gz", np.int64)[0, 0])
    if not num_nodes == len(features) == len(labels):
        raise ValueError(
            f"num-node-list says {num_nodes} nodes, got {len(features)} rows of "
            f"node-feat and {len(labels)} of node-label"
        )
    splits = [
        _table(folder / "split" / "time" / f"{part}.csv.gz", np.int64)[:, 0]
        for part in ("train", "valid", "test")
    ]
    adjacency = adjacency_from_edges(edges[:, 0], edges[:, 1], num_nodes)
    return _split_graph(graph, features, labels, splits, adjacency)


READERS: dict[str, Callable[[str, Path], Graph]] = {
    "cora": read_planetoid,
    "citeseer": read_planetoid,
    "pubmed": read_planetoid,
    "computers": read_gnn_benchmark,
    "photo": read_gnn_benchmark,
    "coauthor_cs": read_gnn_benchmark,
    "coauthor_physics": read_gnn_benchmark,
    "flickr": read_flickr,
    "reddit": read_reddit,
    "ogbn_arxiv": read_ogbn_arxiv,
}


def _split_graph(
    name: str,
    features: np.ndarray,  # (num_nodes, num_features) float32
    labels: np.ndarray,  # (num_nodes,) int64
    splits: Sequence[np.ndarray],  # train, validation and test nodes
    adjacency: Adjacency,
) -> Graph:
    """A graph that comes with its own split."""
    train, validation, test = map(index_tensor, splits)
    return Graph(
        name=name,
        features=torch.from_numpy(features),
        labels=torch.from_numpy(labels),
        train_index=train,
        validation_index=validation,
        test_index=test,
        adjacency=adjacency,
        num_classes=int(labels.max()) + 1,
    )


def _stored_rows(file: Any, prefix: str) -> sp.csr_array:
    """Sparse rows from the arrays {prefix}data, indices, indptr and shape."""
    data, indices, indptr, shape = (
        file[f"{prefix}{part}"] for part in ("data", "indices", "indptr", "shape")
    )
    columns = whole_numbers(f"{prefix}indices", indices)
    pointer = whole_numbers(f"{prefix}indptr", indptr)
    rows = sp.csr_array((data, columns, pointer), shape=tuple(shape))
    rows.check_format(full_check=True)
    return rows.astype(np.float32)


def _table(path: Path, dtype: type) -> np.ndarray:
    """A gzip-compressed csv file without a header line, (num_lines, num_columns)."""
    unpacked = 0
    with gzip.open(path) as file:  # a few bytes may unpack to more than any memory
        while piece := file.read(PIECE):
            unpacked += len(piece)
            if unpacked > MAX_TEXT_BYTES:
                raise ValueError(f"{path} unpacks to more than {MAX_TEXT_BYTES} bytes")
    frame = pd.read_csv(path, compression="gzip", header=None, dtype=dtype)
    return frame.to_numpy(copy=True)
