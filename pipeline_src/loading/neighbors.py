"""Neighbour sampling (Hamilton et al. 2017, arXiv 1706.02216, algorithm 2).

A batch starts from its seeds. Hop by hop, every node that came in with the hop before
takes `fan-out` of the edges it receives, evenly among all sets of that many different
edges, or all it has where it has no more; their senders that are new come in. No node
is asked twice. A network with one layer per hop computes from the batch what it would
compute with means over sampled neighbours.

The draw is Floyd's (Bentley and Floyd 1987, "a sample of brilliance"): for j from
degree - fan-out to degree - 1, take a number of 0 .. j, and j itself if that number
was taken before. All rows of a hop draw together, so that its cost is fan-out passes
over the rows and does not grow with degrees.
"""

from typing import Any

import numpy as np
from torch import Tensor
from torch_geometric.data import Data

from pipeline_src.loading.batches import Batch, BatchLoader, Draw, Seed
from pipeline_src.loading.in_edges import InEdges, Subgraph, places_of_rows
from pipeline_src.loading.inputs import input_nodes_of, whole_number

ALL = -1


def draw_without_replacement(
    degree: np.ndarray,  # (rows,) int64, each at least fan_out
    fan_out: int,
    generator: np.random.Generator,
) -> np.ndarray:  # (fan_out, rows) int64
    """In each column fan_out different numbers of 0 .. degree - 1, all sets equally."""
    last = degree - fan_out + np.arange(fan_out)[:, None]
    taken = generator.integers(0, last, endpoint=True)
    for step in range(1, fan_out):
        repeated = (taken[:step] == taken[step]).any(axis=0)
        taken[step, repeated] = last[step, repeated]
    return taken


def sample_neighbors(
    rows: InEdges,
    seeds: np.ndarray,  # (batch_size,) int64, each once
    fan_outs: tuple[int, ...],  # one per hop; ALL: every neighbour
    generator: np.random.Generator,
) -> tuple[Subgraph, list[int], list[int]]:
    """Seeds first, then the nodes of each hop in the order they were met.

    Returns:
        the subgraph of the edges drawn, sorted by hop; how many nodes came in with
        the seeds and each hop; how many edges each hop drew.
    """
    local = np.full(rows.num_nodes, -1)
    local[seeds] = np.arange(len(seeds))
    nodes, places, receivers = [seeds], [], []
    before, found = 0, len(seeds)
    for fan_out in fan_outs:
        place, receiver = _draw_hop(rows, nodes[-1], fan_out, generator)
        new = _first_met(rows.sender[place], local)
        local[new] = np.arange(found, found + len(new))
        nodes.append(new)
        places.append(place)
        receivers.append(receiver + before)
        before, found = found, found + len(new)
    place = np.concatenate(places)
    sampled = Subgraph(
        np.concatenate(nodes),
        local[rows.sender[place]],
        np.concatenate(receivers),
        rows.edge[place],
    )
    return sampled, [len(new) for new in nodes], [len(hop) for hop in places]


def _draw_hop(
    rows: InEdges, node: np.ndarray, fan_out: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the edges drawn, and the places in `node` of their receivers."""
    degree = rows.row_pointer[node + 1] - rows.row_pointer[node]
    short = degree <= (fan_out if fan_out != ALL else degree)
    few, many = short.nonzero()[0], (~short).nonzero()[0]
    place, receiver = places_of_rows(rows, node[few])
    if not len(many):
        return place, few[receiver]
    drawn = draw_without_replacement(degree[many], fan_out, generator)
    drawn += rows.row_pointer[node[many]]
    place = np.concatenate([place, drawn.ravel()])
    receiver = np.concatenate([few[receiver], np.tile(many, fan_out)])
    # Node after node: sums over the edges then run through memory in order.
    order = np.argsort(receiver, kind="stable")
    return place[order], receiver[order]


def _first_met(sender: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Senders that are not in the batch, each once, in the order they were met."""
    new = sender[local[sender] < 0]
    count = np.arange(len(new))
    # Of several numbers written to one place the last stays: here, the first meeting.
    local[new[::-1]] = count[::-1]
    met = new[local[new] == count]
    local[new] = -1
    return met


class NeighborLoader(BatchLoader):
    """Batches of nodes with sampled neighbours; stands in for PyTorch Geometric's.

    Each batch is a `Data` with the features, labels and other fields of its nodes and
    edges, and with

    * `n_id`, `e_id`: its nodes and edges in `data`; the first `batch_size` nodes are
      the seeds, and the loss belongs to them alone;
    * `input_id`: the places of the seeds in `input_nodes`, or node numbers where
      that is a mask;
    * `num_sampled_nodes`, `num_sampled_edges`: how many came in with each hop.

    What a batch holds follows from (seed, epoch, place in the epoch) and from nothing
    else: neither from the number of workers nor from PyTorch's global generator. The
    epoch counts up with each pass; `set_epoch` sets it.

    Args:
        data: the graph, on the CPU, with an `edge_index` from senders to receivers.
        num_neighbors: how many edges a node takes in each hop, one number per layer of
            the network; -1 takes all.
        input_nodes: the seeds of an epoch, as node numbers or a mask; None: all nodes.
        batch_size: seeds in a batch; the last one of an epoch may have fewer.
        shuffle: whether seeds come in a new order each epoch.
        drop_last: whether a last batch with fewer seeds is left out.
        seed: of everything drawn.
        workers: what says how batches are made ahead, as for
            `torch.utils.data.DataLoader`: `num_workers`, `prefetch_factor`,
            `persistent_workers`, `pin_memory`, `timeout`, `multiprocessing_context`.

    Raises:
        TypeError: if `data` is no homogeneous graph or an argument is of another kind.
        ValueError: if there is no usable `edge_index`, or a number is out of range.
    """

    def __init__(
        self,
        data: Data,
        num_neighbors: list[int] | tuple[int, ...],
        input_nodes: Tensor | None = None,  # (n,) int64, or (num_nodes,) bool
        batch_size: int = 1,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        **workers: Any,
    ) -> None:
        draw = NeighborDraw(data, num_neighbors, input_nodes, batch_size, shuffle)
        num_seeds = len(draw.input_nodes)
        num_batches = num_seeds // batch_size
        if not drop_last and num_seeds % batch_size:
            num_batches += 1
        super().__init__(data, draw, num_batches, seed, workers)


class NeighborDraw(Draw):
    """What NeighborLoader draws."""

    def __init__(
        self,
        data: Data,
        num_neighbors: list[int] | tuple[int, ...],
        input_nodes: Tensor | None,
        batch_size: int,
        shuffle: bool,
    ) -> None:
        super().__init__(data)
        self.fan_outs = tuple(_fan_out(number) for number in num_neighbors)
        if not self.fan_outs:
            raise ValueError(
                "num_neighbors: expected a number per layer of the network, got none"
            )
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.shuffle = bool(shuffle)
        self.input_nodes, self.input_id = input_nodes_of(
            input_nodes, self.rows.num_nodes
        )

    def __call__(self, seed: Seed, epoch: int, batch: int) -> Batch:
        """The batch at a place of an epoch."""
        chosen = np.arange(len(self.input_nodes))
        if self.shuffle:
            chosen = seed.of_epoch(epoch).permutation(chosen)
        start = batch * self.batch_size
        chosen = chosen[start : start + self.batch_size]
        sampled, num_nodes, num_edges = sample_neighbors(
            self.rows, self.input_nodes[chosen], self.fan_outs, seed.of(epoch, batch)
        )
        fields = {
            "input_id": self.input_id[chosen],
            "batch_size": len(chosen),
            "num_sampled_nodes": num_nodes,
            "num_sampled_edges": num_edges,
        }
        return sampled, fields


def _fan_out(number: int) -> int:
    if number == ALL:
        return ALL
    return whole_number("num_neighbors", number, 1, " (or -1, which takes all)")
