"""Raw files: made up in the published layouts, small and from a seed; or real ones."""

import gzip
import json
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "data"


def published(source: str) -> Path:
    """The real raw files, where a folder of them lies beside the repository."""
    if not (PUBLISHED / source / "raw").is_dir():
        pytest.skip(f"no real files of {source} in ../shared/data")
    return PUBLISHED / source


def write_planetoid(folder: Path, name: str, gaps: int = 0) -> None:
    """Eight files: 12 training nodes, 500 to validate, 40 test nodes, shuffled.

    With gaps so many node numbers between the test nodes belong to no test node, as
    in CiteSeer. The lists of neighbours hold loops and repeats.
    """
    generator = np.random.default_rng(0)
    num_train, num_known, num_test, num_words, num_classes = 12, 520, 40, 30, 4
    numbers = num_known + generator.choice(
        np.arange(1, num_test + gaps - 1), num_test - 2, replace=False
    )
    test = np.concatenate([[num_known + num_test + gaps - 1, num_known], numbers])
    num_nodes = num_known + num_test + gaps

    def words(count):
        rows = sp.random(count, num_words, 0.2, "csr", np.float32, rng=generator)
        return sp.csr_matrix(rows)

    known, labels = words(num_known), generator.integers(0, num_classes, num_known)
    neighbors = defaultdict(list)
    for one, other in generator.integers(0, num_nodes, (1500, 2)).tolist():
        neighbors[one].append(other)
        neighbors[other].append(one)
    one_hot = np.eye(num_classes, dtype=np.int32)
    parts = {
        "x": known[:num_train],
        "y": one_hot[labels[:num_train]],
        "allx": known,
        "ally": one_hot[labels],
        "tx": words(num_test),
        "ty": one_hot[generator.integers(0, num_classes, num_test)],
        "graph": neighbors,
    }
    raw = _raw(folder)
    for part, content in parts.items():
        (raw / f"ind.{name}.{part}").write_bytes(pickle.dumps(content, protocol=4))
    np.savetxt(raw / f"ind.{name}.test.index", test, fmt="%d")


def write_gnn_benchmark(folder: Path, file: str) -> None:
    """One npz: directed edges with loops and repeats, counts of words, class names."""
    generator = np.random.default_rng(1)
    edges = sp.csr_matrix(
        (np.ones(600), generator.integers(0, 80, (2, 600))), shape=(80, 80)
    )
    words = sp.random(80, 25, 0.1, "csr", rng=generator) * 5
    arrays = {
        f"{prefix}_{part}": getattr(matrix, part)
        for prefix, matrix in {"adj": edges, "attr": words}.items()
        for part in ("data", "indices", "indptr", "shape")
    }
    labels = np.arange(80) % 6
    names = np.array(["a pickled object", None], dtype=object)
    np.savez(_raw(folder) / file, **arrays, labels=labels, class_names=names)


def write_flickr(folder: Path) -> None:
    """GraphSAINT's four files, symmetric with loops."""
    generator = np.random.default_rng(2)
    edges = sp.random(60, 60, 0.1, "csr", rng=generator)
    edges = sp.csr_matrix(edges + edges.T)
    roles = np.split(generator.permutation(60), [30, 45])
    raw = _raw(folder)
    sp.save_npz(raw / "adj_full.npz", edges)
    np.save(raw / "feats.npy", generator.standard_normal((60, 9)))
    classes = {str(node): node % 7 for node in range(60)}
    (raw / "class_map.json").write_text(json.dumps(classes))
    role = {
        name: nodes.tolist()
        for name, nodes in zip(("tr", "va", "te"), roles, strict=True)
    }
    (raw / "role.json").write_text(json.dumps(role))


def write_reddit(folder: Path) -> None:
    """DGL's two files: edges as coordinates with loops, repeats and edges one way."""
    generator = np.random.default_rng(4)
    row, column = generator.integers(0, 70, (2, 500))
    edges = sp.coo_matrix((np.ones(500), (row, column)), shape=(70, 70))
    raw = _raw(folder)
    sp.save_npz(raw / "reddit_graph.npz", edges)
    np.savez(
        raw / "reddit_data.npz",
        feature=generator.standard_normal((70, 9)),
        label=np.arange(70, dtype=np.int32) % 6,
        node_ids=np.arange(70),
        node_types=generator.permutation(np.repeat([1, 2, 3], [40, 10, 20])),
    )


def write_ogbn_arxiv(folder: Path) -> None:
    """The unpacked archive: citations one way, some both ways, split by time."""
    generator = np.random.default_rng(3)
    num_nodes, num_edges = 50, 200
    edges = generator.integers(0, num_nodes, (num_edges, 2))
    edges = edges[edges[:, 0] != edges[:, 1]]
    train, valid, test = np.split(generator.permutation(num_nodes), [30, 40])
    tables = {
        "raw/edge": edges,
        "raw/node-feat": generator.standard_normal((num_nodes, 8)).round(6),
        "raw/node-label": (np.arange(num_nodes) % 5)[:, None],
        "raw/node_year": generator.integers(1990, 2021, (num_nodes, 1)),
        "raw/num-node-list": np.array([[num_nodes]]),
        "raw/num-edge-list": np.array([[len(edges)]]),
        "split/time/train": np.sort(train)[:, None],
        "split/time/valid": np.sort(valid)[:, None],
        "split/time/test": np.sort(test)[:, None],
    }
    for name, table in tables.items():
        path = folder / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(",".join(map(str, row)) + "\n" for row in table.tolist())
        path.write_bytes(gzip.compress(lines.encode()))
    (folder / "RELEASE_v1.txt").write_text("made up\n")


def _raw(folder: Path) -> Path:
    raw = folder / "raw"
    raw.mkdir(parents=True)
    return raw
