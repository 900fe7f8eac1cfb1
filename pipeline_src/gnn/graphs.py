"""Graphs whose nodes are to be classified: in memory and in a file.

An adjacency is kept as compressed sparse rows with int32 indices, and without
weights: row i lists the nodes j that send to node i, so that (A x)_i is the sum of
x_j over row i. Backward of that sum needs the transpose. Nearly all published
experiments symmetrise their graph, and a symmetric adjacency is its own transpose, so
it is stored once (`transposed` is None). Self loops are left to the models.

A prepared graph is one .npz file of plain arrays, from which every later step reads.
Wide bag-of-words features are mostly zero: the file holds whichever of dense and
sparse rows is smaller; in memory they are dense.
"""

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pipeline_src.gnn.edges import (
    Rows,
    check_rows,
    rows_from_edges,
    same_rows,
    transposed_rows,
)

# What reading a damaged archive of arrays can raise.
DAMAGE = (
    EOFError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class Adjacency:
    """Which nodes j send to node i: row i lists them, sorted, each once."""

    row_pointer: Tensor  # (num_nodes + 1,) int32
    column: Tensor  # (num_entries,) int32, increasing within a row
    transposed: "Adjacency | None" = None  # None: symmetric, its own transpose

    @property
    def num_nodes(self) -> int:
        """Rows, and also columns."""
        return self.row_pointer.numel() - 1

    @property
    def num_entries(self) -> int:
        """Directed edges; an undirected one between two nodes counts twice."""
        return self.column.numel()

    @property
    def symmetric(self) -> bool:
        """Whether the adjacency serves as its own transpose."""
        return self.transposed is None

    @property
    def degree(self) -> Tensor:
        """In-degree of each node, (num_nodes,) int32."""
        return self.row_pointer.diff()

    @property
    def nbytes(self) -> int:
        """Bytes of the index tensors kept, the transpose included."""
        own = self.row_pointer.nbytes + self.column.nbytes
        return own + (0 if self.transposed is None else self.transposed.nbytes)

    def to(self, device: torch.device | str) -> "Adjacency":
        """The same adjacency on another device."""
        return Adjacency(
            self.row_pointer.to(device),
            self.column.to(device),
            None if self.transposed is None else self.transposed.to(device),
        )


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph with features and classes of nodes, and which nodes serve for what."""

    name: str
    features: Tensor  # (num_nodes, num_features) float32
    labels: Tensor  # (num_nodes,) int64, 0 .. num_classes - 1
    train_index: Tensor  # int64 node numbers; the three are disjoint
    validation_index: Tensor
    test_index: Tensor
    adjacency: Adjacency
    num_classes: int

    @property
    def num_nodes(self) -> int:
        """Nodes, all of which take part in aggregation."""
        return self.features.shape[0]

    @property
    def num_features(self) -> int:
        """Width of the input features."""
        return self.features.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of every tensor: what a resident graph costs on its device."""
        tensors = (
            self.features,
            self.labels,
            self.train_index,
            self.validation_index,
            self.test_index,
        )
        return self.adjacency.nbytes + sum(tensor.nbytes for tensor in tensors)

    def to(self, device: torch.device | str) -> "Graph":
        """The same graph on another device."""
        return replace(
            self,
            features=self.features.to(device),
            labels=self.labels.to(device),
            adjacency=self.adjacency.to(device),
            train_index=self.train_index.to(device),
            validation_index=self.validation_index.to(device),
            test_index=self.test_index.to(device),
        )


def adjacency_from_edges(
    source: np.ndarray,  # (num_edges,) int, the node that sends
    target: np.ndarray,  # (num_edges,) int, the node that receives
    num_nodes: int,
    *,
    symmetrize: bool = True,
) -> Adjacency:
    """Adjacency of a list of edges; repeated edges count once, self loops stay.

    With symmetrize every edge is taken in both directions. Without it the transpose
    is stored as well, unless the list happens to be symmetric.

    Raises:
        ValueError: if an edge names a node outside 0 .. num_nodes - 1.

    >>> two_edges = adjacency_from_edges(np.array([0, 1]), np.array([1, 2]), 3)
    >>> two_edges.column.tolist(), two_edges.degree.tolist()
    ([1, 0, 2, 1], [1, 2, 1])
    """
    source, target = np.asarray(source), np.asarray(target)
    if symmetrize:
        both = np.concatenate([source, target]), np.concatenate([target, source])
        return _adjacency(rows_from_edges(*both, num_nodes))
    forward = rows_from_edges(source, target, num_nodes)
    backward = transposed_rows(*forward)
    transposed = None if same_rows(forward, backward) else _adjacency(backward)
    return replace(_adjacency(forward), transposed=transposed)


def write_graph(graph: Graph, path: str | Path) -> None:
    """Write one .npz, or nothing: a temporary file beside it is renamed at the end.

    Equal graphs give equal bytes.

    Raises:
        ValueError: if the graph contradicts itself (see check_graph).
    """
    check_graph(graph)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **_arrays_from_graph(graph))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_graph(path: str | Path) -> Graph:
    """Read what write_graph wrote; nothing in the file can execute.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, of another layout, or contradicts itself.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"array {damaged} does not match its checksum")
        with np.load(path, allow_pickle=False) as file:
            graph = _graph_from_arrays(dict(file))
        check_graph(graph)
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise ValueError(
            f"{path} is not a sound prepared graph: {error}. "
            "Delete it and run snakemake again to prepare it anew."
        ) from error
    return graph


def check_graph(graph: Graph) -> None:
    """Refuse a graph that contradicts itself.

    Raises:
        ValueError: naming the tensor, what it should hold and what it holds.
    """
    _check_tensor("features", graph.features, torch.float32, 2)
    if not bool(torch.isfinite(graph.features).all()):
        raise ValueError("features: expected finite values, got NaN or Inf")
    _check_tensor("labels", graph.labels, torch.int64, 1)
    _check_range("labels", graph.labels, graph.num_classes)
    adjacency = graph.adjacency
    for name, count in (
        ("labels", graph.labels.numel()),
        ("row_pointer", adjacency.num_nodes),
    ):
        if count != graph.num_nodes:
            raise ValueError(
                f"{name}: expected {graph.num_nodes} nodes as in features, got {count}"
            )
    splits = {
        "train_index": graph.train_index,
        "validation_index": graph.validation_index,
        "test_index": graph.test_index,
    }
    for name, index in splits.items():
        _check_tensor(name, index, torch.int64, 1)
        _check_range(name, index, graph.num_nodes)
    used = torch.cat(list(splits.values()))
    if used.unique().numel() != used.numel():
        raise ValueError(f"{', '.join(splits)}: expected each node once at most")
    forward = _rows(adjacency)
    backward = _rows(adjacency.transposed) if adjacency.transposed else forward
    check_rows(*forward)
    check_rows(*backward)
    if not same_rows(transposed_rows(*forward), backward):
        kind = "a symmetric one" if adjacency.symmetric else "its transpose beside it"
        raise ValueError(f"adjacency: expected {kind}, got edges without counterpart")


def _adjacency(rows: Rows) -> Adjacency:
    row_pointer, column = rows
    return Adjacency(torch.from_numpy(row_pointer), torch.from_numpy(column))


def _rows(adjacency: Adjacency) -> Rows:
    return adjacency.row_pointer.numpy(), adjacency.column.numpy()


def _arrays_from_graph(graph: Graph) -> dict[str, np.ndarray]:
    """What the file holds, by name."""
    arrays = {
        "name": np.array(graph.name),
        "num_classes": np.array(graph.num_classes),
        "labels": graph.labels.numpy(),
        "train_index": graph.train_index.numpy(),
        "validation_index": graph.validation_index.numpy(),
        "test_index": graph.test_index.numpy(),
    }
    arrays["row_pointer"], arrays["column"] = _rows(graph.adjacency)
    if graph.adjacency.transposed is not None:
        row_pointer, column = _rows(graph.adjacency.transposed)
        arrays |= {"transposed_row_pointer": row_pointer, "transposed_column": column}
    return arrays | _feature_arrays(graph.features.numpy())


def _feature_arrays(features: np.ndarray) -> dict[str, np.ndarray]:
    """Dense features or their sparse rows, whichever takes fewer bytes."""
    # Sparse: 4 bytes for a value, 4 for its column, 4 for the start of each row.
    sparse_bytes = 8 * np.count_nonzero(features) + 4 * (len(features) + 1)
    if sparse_bytes >= features.nbytes:
        return {"features": features}
    rows = sp.csr_array(features)
    return {
        "features_data": rows.data,
        "features_indices": rows.indices,
        "features_indptr": rows.indptr,
        "features_shape": np.array(rows.shape),
    }


def _graph_from_arrays(arrays: dict[str, np.ndarray]) -> Graph:
    """Graph from the arrays of its file, not yet checked."""

    def take(name: str) -> np.ndarray:
        if name not in arrays:
            raise ValueError(f"expected an array {name}, got {sorted(arrays)}")
        return arrays[name]

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(take(name))

    if "features" in arrays:
        features = take("features")
    else:
        shape = take("features_shape")
        parts = ("data", "indices", "indptr")
        rows = sp.csr_array(tuple(take(f"features_{part}") for part in parts), shape)
        rows.check_format(full_check=True)
        features = rows.toarray()
    adjacency = _adjacency((take("row_pointer"), take("column")))
    if "transposed_column" in arrays:
        backward = take("transposed_row_pointer"), take("transposed_column")
        adjacency = replace(adjacency, transposed=_adjacency(backward))
    return Graph(
        name=str(take("name")),
        features=torch.from_numpy(features),
        labels=tensor("labels"),
        train_index=tensor("train_index"),
        validation_index=tensor("validation_index"),
        test_index=tensor("test_index"),
        adjacency=adjacency,
        num_classes=int(take("num_classes")),
    )


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, ndim: int) -> None:
    if tensor.dtype != dtype or tensor.ndim != ndim:
        raise ValueError(
            f"{name}: expected {dtype} of {ndim} dimension(s), "
            f"got {tensor.dtype} of {tensor.ndim}"
        )


def _check_range(name: str, tensor: Tensor, stop: int) -> None:
    if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < stop:
        raise ValueError(
            f"{name}: expected values in 0 .. {stop - 1}, "
            f"got {int(tensor.min())} .. {int(tensor.max())}"
        )
