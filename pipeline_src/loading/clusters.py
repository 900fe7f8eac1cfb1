"""Cluster-GCN (Chiang et al. 2019, arXiv 1905.07953): parts of a graph as batches.

The graph is cut into parts with few edges between them, once. A batch joins q parts
drawn at random, with the edges inside them and those between them (section 3.2 of the
paper, "stochastic multiple partitions").

The paper cuts with METIS, whose parts a loader takes as they are. `partition_graph`
needs nothing beside NumPy: parts grow one after another from a random start, a ring of
neighbours at a time, and from the ring that is too large for the part come the nodes
with the most edges into it. Sizes differ by one at most. It cuts more edges than METIS
does, which refines what it has grown.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from pipeline_src.loading.batches import Batch, BatchLoader, Draw, Seed
from pipeline_src.loading.in_edges import (
    InEdges,
    in_edges,
    induced_subgraph,
    places_of_rows,
)
from pipeline_src.loading.inputs import in_edges_of, whole_number


class ClusterLoader(BatchLoader):
    """Batches are parts of a graph, `batch_size` at a time, with all edges among them.

    Each batch is a `Data` with the fields of its nodes and edges, `n_id` and `e_id`.
    What it holds follows from (seed, epoch, place in the epoch) alone.

    Args:
        data: the graph, on the CPU, with an `edge_index` from senders to receivers.
        parts: which part each node is in, as `partition_graph` or METIS tells it; any
            numbers will do.
        batch_size: parts in a batch; the last one of an epoch may have fewer.
        shuffle: whether parts are joined anew each epoch.
        seed: of everything drawn.
        workers: as for `NeighborLoader`.

    Raises:
        TypeError: if `data` is no homogeneous graph or an argument is of another kind.
        ValueError: if there is no usable `edge_index`, or `parts` does not have a
            number for every node.
    """

    def __init__(
        self,
        data: Data,
        parts: Tensor,  # (num_nodes,) int64
        batch_size: int = 1,
        *,
        shuffle: bool = False,
        seed: int = 0,
        **workers: Any,
    ) -> None:
        draw = ClusterDraw(data, parts, batch_size, shuffle)
        num_batches = -(-len(draw.members) // draw.batch_size)
        super().__init__(data, draw, num_batches, seed, workers)


class ClusterDraw(Draw):
    """What ClusterLoader draws."""

    def __init__(
        self, data: Data, parts: Tensor, batch_size: int, shuffle: bool
    ) -> None:
        super().__init__(data)
        given = torch.as_tensor(parts)
        if given.shape != (self.rows.num_nodes,) or given.is_floating_point():
            raise ValueError(
                f"parts: expected whole numbers of shape ({self.rows.num_nodes},), one "
                f"for each node, got {given.dtype} of shape {tuple(given.shape)}"
            )
        _, part = np.unique(given.cpu().numpy(), return_inverse=True)
        by_part = np.argsort(part, kind="stable")
        self.members = np.split(by_part, np.cumsum(np.bincount(part))[:-1])
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.shuffle = bool(shuffle)

    def __call__(self, seed: Seed, epoch: int, batch: int) -> Batch:
        """The batch at a place of an epoch."""
        order = np.arange(len(self.members))
        if self.shuffle:
            order = seed.of_epoch(epoch).permutation(order)
        start = batch * self.batch_size
        chosen = [self.members[p] for p in order[start : start + self.batch_size]]
        node = np.sort(np.concatenate(chosen))
        return induced_subgraph(self.rows, node), {}


def partition_graph(
    data: Data,
    num_parts: int,
    *,
    seed: int = 0,  # of where parts begin
) -> Tensor:  # (num_nodes,) int64, 0 .. num_parts - 1
    """Parts of equal size, to one node, with more edges inside than chance gives.

    The direction of edges makes no difference.

    Raises:
        TypeError: if `data` is no homogeneous graph.
        ValueError: if there are fewer nodes than parts, or no usable `edge_index`.

    >>> ring = torch.arange(8)
    >>> data = Data(edge_index=torch.stack([ring, ring.roll(1)]), num_nodes=8)
    >>> partition_graph(data, 4).bincount().tolist()
    [2, 2, 2, 2]
    """
    rows = in_edges_of(data)
    num_parts = whole_number("num_parts", num_parts, 1)
    if num_parts > rows.num_nodes:
        raise ValueError(
            f"num_parts: expected at most {rows.num_nodes}, the number of nodes, "
            f"got {num_parts}"
        )
    receiver = np.repeat(np.arange(rows.num_nodes), rows.degree)
    ends = np.stack([rows.sender, receiver])
    both = np.concatenate([ends, ends[::-1]], axis=1)
    neighbors = in_edges(both, rows.num_nodes)
    generator = np.random.default_rng(whole_number("seed", seed, 0))
    return torch.from_numpy(_grown_parts(neighbors, num_parts, generator))


def _grown_parts(
    neighbors: InEdges, num_parts: int, generator: np.random.Generator
) -> np.ndarray:
    """Part of each node; every part is filled before the next begins."""
    num_nodes = neighbors.num_nodes
    part = np.full(num_nodes, -1)
    starts = iter(generator.permutation(num_nodes).tolist())
    smaller, larger = divmod(num_nodes, num_parts)
    for number in range(num_parts):
        room = smaller + (number < larger)
        ring = np.empty(0, dtype=np.int64)
        while room:
            if not len(ring):
                ring = np.array([next(node for node in starts if part[node] < 0)])
            taken = closest(ring, room)
            part[taken] = number
            room -= len(taken)
            place, _ = places_of_rows(neighbors, taken)
            ring = neighbors.sender[place]
            ring = ring[part[ring] < 0]
    return part


def closest(ring: np.ndarray, room: int) -> np.ndarray:
    """Nodes of a ring that lists each once per edge into the part: most edges first."""
    node, num_edges = np.unique(ring, return_counts=True)
    if len(node) <= room:
        return node
    return node[np.argsort(-num_edges, kind="stable")[:room]]
