"""Which process owns which node.

A partition is one tensor, the rank of each node. By range needs nothing and is right
for a graph whose numbering already follows its structure; METIS (Karypis & Kumar 1998)
looks for parts of nearly equal size with few edges between them, and comes with the
extra `partition`.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline_src.graphs.edges import rows_from_edges
from pipeline_src.graphs.graph import Adjacency

METHODS = ("range", "metis")


def partition(adjacency: Adjacency, num_parts: int, method: str) -> Tensor:
    """The rank of each node, (num_nodes,) int64.

    Raises:
        ValueError: if the method is unknown, or there are more parts than nodes.
        ModuleNotFoundError: if METIS is not installed, with the command to install it.

    >>> ring = Adjacency(torch.arange(5).int(), torch.tensor([1, 2, 3, 0]).int())
    >>> partition(ring, 3, "range").tolist()
    [0, 0, 1, 2]
    """
    if method not in METHODS:
        raise ValueError(f"partition must be one of {METHODS}, got {method!r}")
    num_nodes = adjacency.num_nodes
    if not 1 <= num_parts <= num_nodes:
        raise ValueError(
            f"a graph of {num_nodes} nodes makes 1 to {num_nodes} parts, got "
            f"{num_parts}; start fewer processes"
        )
    if method == "metis" and num_parts > 1:
        owner = _by_metis(adjacency, num_parts)
    else:
        owner = torch.arange(num_nodes) * num_parts // num_nodes
    check_partition(owner, num_nodes, num_parts)
    return owner


def check_partition(owner: Tensor, num_nodes: int, num_parts: int) -> None:
    """Refuse a partition in which a rank would have nothing to do.

    Raises:
        ValueError: if it names a rank that does not exist, misses a node, or leaves a
            rank without nodes.
        TypeError: if it is not int64.
    """
    if owner.dtype != torch.int64:
        raise TypeError(f"a partition must be int64, got {owner.dtype}")
    if owner.shape != (num_nodes,):
        raise ValueError(
            f"a partition names the rank of each of {num_nodes} nodes, got shape "
            f"{tuple(owner.shape)}"
        )
    if not 0 <= int(owner.min()) <= int(owner.max()) < num_parts:
        raise ValueError(
            f"a partition names ranks 0 .. {num_parts - 1}, got {int(owner.min())} .. "
            f"{int(owner.max())}"
        )
    sizes = owner.bincount(minlength=num_parts)
    if empty := (sizes == 0).nonzero().view(-1).tolist():
        raise ValueError(
            f"each rank needs at least one node, but ranks {empty} of {num_parts} got "
            "none; start fewer processes, or partition by range"
        )


def cut_edges(adjacency: Adjacency, owner: Tensor) -> int:
    """Directed edges between nodes of different ranks."""
    receiver = owner.repeat_interleave(adjacency.degree.long())
    return int((receiver != owner[adjacency.column.long()]).sum())


def _by_metis(adjacency: Adjacency, num_parts: int) -> Tensor:
    try:
        import pymetis
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "partition metis needs pymetis: pip install 'pipeline-src[partition]', or "
            "choose range"
        ) from None
    # METIS takes undirected graphs without loops.
    row = np.repeat(np.arange(adjacency.num_nodes), adjacency.degree.numpy())
    column = adjacency.column.numpy()
    row, column = row[row != column], column[row != column]
    pointer, neighbor = rows_from_edges(
        np.concatenate([row, column]),
        np.concatenate([column, row]),
        adjacency.num_nodes,
    )
    _, ranks = pymetis.part_graph(num_parts, pymetis.CSRAdjacency(pointer, neighbor))
    return torch.tensor(ranks, dtype=torch.int64)
