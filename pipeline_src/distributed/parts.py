"""What one process holds of a graph: its own nodes, and who its neighbours' owners are.

Nodes of a part are its *own*, numbered 0, 1, .. in the order of the whole graph.
Neighbours that other ranks own are its *halo*, grouped by owner and in the order of
the whole graph within each. The rows of the adjacency are cut in two,

    A x = A_inside x_own + A_across x_halo,

so that nothing is copied to put own and halo rows into one tensor. Each rank knows
which of its own rows every other rank has in its halo, in the same order, so that
messages hold rows and no numbers of nodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from pipeline_src.distributed.partition import check_partition
from pipeline_src.graphs.graph import Graph
from pipeline_src.graphs.splits import refuse_empty_splits


@dataclass(frozen=True, eq=False)
class GraphPart:
    """The share of one rank; the graph's totals are there to form means with."""

    rank: int
    num_parts: int
    nodes: Tensor  # (num_own,) int64, numbers in the whole graph, increasing
    features: Tensor  # (num_own, num_features) float32
    labels: Tensor  # (num_own,) int64
    train_index: Tensor  # int64, among the own; may be empty, as the other two
    validation_index: Tensor
    test_index: Tensor
    inside_pointer: Tensor  # (num_own + 1,) int32, rows of A_inside
    inside_column: Tensor  # int32, own nodes
    across_pointer: Tensor  # (num_own + 1,) int32, rows of A_across
    across_column: Tensor  # int32, halo nodes
    degree: Tensor  # (num_own + num_halo,) int32, in-degree in the whole graph
    has_loop: Tensor  # (num_own + num_halo,) bool
    sent: Tensor  # (sum of num_sent,) int64, own nodes in other halos, by receiver
    num_sent: tuple[int, ...]  # rows for each rank
    num_received: tuple[int, ...]  # halo rows of each rank
    num_classes: int
    num_nodes: int  # of the whole graph
    num_in_splits: tuple[int, int, int]  # train, validation, test, of the whole graph

    @property
    def num_own(self) -> int:
        """Nodes that this rank computes."""
        return self.nodes.numel()

    @property
    def num_halo(self) -> int:
        """Rows that arrive in each exchange."""
        return sum(self.num_received)

    @property
    def num_features(self) -> int:
        """Width of the input features."""
        return self.features.shape[1]

    @property
    def splits(self) -> dict[str, Tensor]:
        """Own nodes to train, validate and test on."""
        return {
            "train_index": self.train_index,
            "validation_index": self.validation_index,
            "test_index": self.test_index,
        }

    def to(self, device: torch.device | str) -> "GraphPart":
        """The same part on another device."""
        moved = {
            field.name: getattr(self, field.name).to(device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)


def cut(graph: Graph, owner: Tensor, num_parts: int) -> Iterator[GraphPart]:
    """The parts of a graph on the CPU, rank by rank, one at a time.

    Args:
        graph: whole, on the CPU.
        owner: rank of each node, (num_nodes,) int64.
        num_parts: ranks.

    Raises:
        ValueError: if the partition leaves a rank without nodes, or a split is empty.
    """
    graph.refuse_multilabel("training in parts")
    check_partition(owner, graph.num_nodes, num_parts)
    refuse_empty_splits(graph.splits)
    halos = [_halo_of(graph, owner, rank) for rank in range(num_parts)]
    for rank in range(num_parts):
        yield _part_of(graph, owner, rank, halos)


def _rows_of(graph: Graph, owner: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Receiver and sender of each edge into a rank, by receiver."""
    receiver = torch.arange(graph.num_nodes).repeat_interleave(
        graph.adjacency.degree.long()
    )
    mine = owner[receiver] == rank
    return receiver[mine], graph.adjacency.column[mine].long()


def _halo_of(graph: Graph, owner: Tensor, rank: int) -> Tensor:
    """Nodes of others that send into a rank, by owner, then by number."""
    _, sender = _rows_of(graph, owner, rank)
    halo = sender[owner[sender] != rank].unique()
    return halo[owner[halo].argsort(stable=True)]


def _part_of(graph: Graph, owner: Tensor, rank: int, halos: list[Tensor]) -> GraphPart:
    num_parts, halo = len(halos), halos[rank]
    nodes = (owner == rank).nonzero().view(-1)
    local = torch.full((graph.num_nodes,), -1)
    local[nodes] = torch.arange(nodes.numel())
    wanted = [theirs[owner[theirs] == rank] for theirs in halos]
    in_halo = torch.full((graph.num_nodes,), -1)
    in_halo[halo] = torch.arange(halo.numel())
    receiver, sender = _rows_of(graph, owner, rank)
    own = owner[sender] == rank
    num_own = nodes.numel()
    inside = _compressed(local[receiver[own]], local[sender[own]], num_own)
    across = _compressed(local[receiver[~own]], in_halo[sender[~own]], num_own)
    known = torch.cat([nodes, halo])
    loops = torch.zeros(graph.num_nodes, dtype=torch.bool)
    column = graph.adjacency.column.numpy()
    row = np.repeat(np.arange(graph.num_nodes), graph.adjacency.degree.numpy())
    loops[torch.from_numpy(column[row == column]).long()] = True
    splits = {
        name: local[index[owner[index] == rank]] for name, index in graph.splits.items()
    }
    train, validation, test = (index.numel() for index in graph.splits.values())
    return GraphPart(
        rank=rank,
        num_parts=num_parts,
        nodes=nodes,
        features=graph.features[nodes],
        labels=graph.labels[nodes],
        **splits,
        inside_pointer=inside[0],
        inside_column=inside[1],
        across_pointer=across[0],
        across_column=across[1],
        degree=graph.adjacency.degree[known],
        has_loop=loops[known],
        sent=local[torch.cat(wanted)],
        num_sent=tuple(one.numel() for one in wanted),
        num_received=tuple(owner[halo].bincount(minlength=num_parts).tolist()),
        num_classes=graph.num_classes,
        num_nodes=graph.num_nodes,
        num_in_splits=(train, validation, test),
    )


def _compressed(row: Tensor, column: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Row pointer and columns, int32, of entries that are sorted by row."""
    pointer = torch.zeros(num_rows + 1, dtype=torch.int32)
    pointer[1:] = row.bincount(minlength=num_rows).cumsum(0)
    return pointer, column.to(torch.int32)
