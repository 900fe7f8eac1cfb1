"""The edges of a graph by the node that receives them, and what is cut out of them.

An edge is named by its place in the graph's `edge_index`, so that what belongs to
edges can be looked up for a batch. Loops and repeated edges stay as they are.

NumPy only: everything here runs inside worker processes.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class InEdges:
    """Edges in compressed sparse rows: row v holds those that v receives."""

    row_pointer: np.ndarray  # (num_nodes + 1,) int64
    sender: np.ndarray  # (num_edges,) int64
    edge: np.ndarray  # (num_edges,) int64, the place in edge_index

    @property
    def num_nodes(self) -> int:
        """Rows."""
        return len(self.row_pointer) - 1

    @property
    def degree(self) -> np.ndarray:
        """How many edges each node receives, (num_nodes,) int64."""
        return np.diff(self.row_pointer)


@dataclass(frozen=True, eq=False)
class Subgraph:
    """Nodes of a graph, and edges between them."""

    node: np.ndarray  # (num_nodes,) int64, each once
    sender: np.ndarray  # (num_edges,) int64, places in `node`
    receiver: np.ndarray  # (num_edges,) int64, places in `node`
    edge: np.ndarray  # (num_edges,) int64, places in edge_index, each once


def in_edges(
    edge_index: np.ndarray,  # (2, num_edges) int64, senders above receivers
    num_nodes: int,
) -> InEdges:
    """Edges by receiver; those of a node stay in the order they came in.

    >>> rows = in_edges(np.array([[0, 2, 1], [1, 1, 0]]), 3)
    >>> rows.row_pointer.tolist(), rows.sender.tolist(), rows.edge.tolist()
    ([0, 1, 3, 3], [1, 0, 2], [2, 0, 1])
    """
    sender, receiver = edge_index
    edge = np.argsort(receiver, kind="stable")
    row_pointer = np.zeros(num_nodes + 1, dtype=np.int64)
    np.cumsum(np.bincount(receiver, minlength=num_nodes), out=row_pointer[1:])
    return InEdges(row_pointer, sender[edge], edge)


def places_of_rows(
    rows: InEdges,
    node: np.ndarray,  # (n,) int64
) -> tuple[np.ndarray, np.ndarray]:
    """Where all edges that the nodes receive lie in `rows`, node after node.

    Returns:
        places in `rows.sender`, and for each the place in `node` of its receiver.
    """
    degree = rows.row_pointer[node + 1] - rows.row_pointer[node]
    receiver = np.repeat(np.arange(len(node)), degree)
    before = np.cumsum(degree) - degree
    place = np.arange(len(receiver)) + (rows.row_pointer[node] - before)[receiver]
    return place, receiver


def induced_subgraph(
    rows: InEdges,
    node: np.ndarray,  # (n,) int64, each once
) -> Subgraph:
    """The nodes in the order given, with all edges that run between two of them."""
    local = np.full(rows.num_nodes, -1)
    local[node] = np.arange(len(node))
    place, receiver = places_of_rows(rows, node)
    sender = local[rows.sender[place]]
    inside = sender >= 0
    return Subgraph(node, sender[inside], receiver[inside], rows.edge[place[inside]])
