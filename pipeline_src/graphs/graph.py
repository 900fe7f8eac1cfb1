"""Graphs whose nodes are to be classified.

An adjacency is kept as compressed sparse rows with int32 indices, and without
weights: row i lists the nodes j that send to node i, so that (A x)_i is the sum of
x_j over row i. Backward of that sum needs the transpose. Nearly all published
experiments symmetrise their graph, and a symmetric adjacency is its own transpose, so
it is stored once (`transposed` is None). Self loops are left to the models.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline_src.graphs.edges import (
    Rows,
    check_rows,
    rows_from_edges,
    same_rows,
    transposed_rows,
    whole_numbers,
)
from pipeline_src.graphs.sizes import GraphSizes
from pipeline_src.graphs.splits import refuse_empty_splits


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
    # (num_nodes,) int64, 0 .. num_classes - 1; or, where a node may have several labels
    # or none, (num_nodes, num_classes) uint8 of 0 and 1
    labels: Tensor
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
    def is_multilabel(self) -> bool:
        """Whether a node may have several labels."""
        return self.labels.ndim == 2

    def refuse_multilabel(self, what: str) -> None:
        """Refuse several labels per node, for what knows classes only.

        Raises:
            ValueError: naming the graph and what trains on it.
        """
        if self.is_multilabel:
            raise ValueError(
                f"{self.name}: {what} expects one class per node, got "
                f"{self.num_classes} labels; train it under sweeps"
            )

    @property
    def num_features(self) -> int:
        """Width of the input features."""
        return self.features.shape[1]

    @property
    def splits(self) -> dict[str, Tensor]:
        """Nodes to train, validate and test on, by their names here."""
        return {
            "train_index": self.train_index,
            "validation_index": self.validation_index,
            "test_index": self.test_index,
        }

    @property
    def sizes(self) -> GraphSizes:
        """What bytes follow from."""
        return GraphSizes(
            self.num_nodes,
            self.adjacency.column.numel(),
            self.num_features,
            self.num_classes,
            self.train_index.numel(),
            self.validation_index.numel(),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of every tensor, what a resident graph costs on its device."""
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
    source: np.ndarray,  # (num_edges,) whole numbers, the node that sends
    target: np.ndarray,  # (num_edges,) whole numbers, the node that receives
    num_nodes: int,
    *,
    symmetrize: bool = True,
) -> Adjacency:
    """Adjacency of a list of edges; repeated edges count once, self loops stay.

    With symmetrize every edge is taken in both directions. Without it the transpose
    is stored as well, unless the list happens to be symmetric.

    Raises:
        ValueError: if an edge names what is no node of 0 .. num_nodes - 1.
        TypeError: if an array does not hold numbers.

    >>> two_edges = adjacency_from_edges(np.array([0, 1]), np.array([1, 2]), 3)
    >>> two_edges.column.tolist(), two_edges.degree.tolist()
    ([1, 0, 2, 1], [1, 2, 1])
    """
    # Before they are joined: NumPy joins int64 and uint64 to float64.
    source = whole_numbers("source", np.asarray(source))
    target = whole_numbers("target", np.asarray(target))
    if symmetrize:
        both = np.concatenate([source, target]), np.concatenate([target, source])
        return _adjacency(rows_from_edges(*both, num_nodes))
    forward = rows_from_edges(source, target, num_nodes)
    backward = transposed_rows(*forward)
    transposed = None if same_rows(forward, backward) else _adjacency(backward)
    return replace(_adjacency(forward), transposed=transposed)


def check_graph(graph: Graph) -> None:
    """Refuse a graph that contradicts itself.

    Raises:
        ValueError: naming the tensor, what it should hold and what it holds.
    """
    _check_tensor("features", graph.features, torch.float32, 2)
    if not bool(torch.isfinite(graph.features).all()):
        raise ValueError("features: expected finite values, got NaN or Inf")
    if graph.is_multilabel:
        _check_tensor("labels", graph.labels, torch.uint8, 2)
        _check_range("labels", graph.labels, 2)
        if graph.labels.shape[1] != graph.num_classes:
            raise ValueError(
                f"labels: expected {graph.num_classes} columns, one for each label, "
                f"got {graph.labels.shape[1]}"
            )
    else:
        _check_tensor("labels", graph.labels, torch.int64, 1)
        _check_range("labels", graph.labels, graph.num_classes)
    adjacency = graph.adjacency
    for name, count in (
        ("labels", len(graph.labels)),
        ("row_pointer", adjacency.num_nodes),
    ):
        if count != graph.num_nodes:
            raise ValueError(
                f"{name}: expected {graph.num_nodes} nodes as in features, got {count}"
            )
    for name, index in graph.splits.items():
        _check_tensor(name, index, torch.int64, 1)
        _check_range(name, index, graph.num_nodes)
    refuse_empty_splits(graph.splits)
    used = torch.cat(list(graph.splits.values()))
    if used.unique().numel() != used.numel():
        raise ValueError(f"{', '.join(graph.splits)}: expected each node once at most")
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
