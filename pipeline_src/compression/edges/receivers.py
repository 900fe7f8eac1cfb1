"""Edges in the order of their receivers, cut into ranges of receivers.

A sum over the edges of a node needs all of them and nothing else. So edges are sorted
by receiver once, stably: within a node they keep their order, and sums their bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from pipeline_src.compression.values import Geometry, geometry_of


@dataclass(frozen=True, eq=False)
class Range:
    """Some receivers and all edges to them."""

    nodes: slice
    edges: slice  # in the order of receivers


@dataclass(frozen=True, eq=False)
class Receivers:
    """The order of edges by one index."""

    index: Tensor  # (num_edges,) receivers in their order: sorted
    order: Tensor | None  # (num_edges,) edge at each place; None: as they come
    pointer: Tensor  # (num_nodes + 1,) first place of each receiver

    @classmethod
    def of(cls, index: Tensor, num_nodes: int) -> "Receivers":
        """Sort an index of edges; (num_edges,) of any integers."""
        order = None
        if index.numel() and not bool((index[1:] >= index[:-1]).all()):
            index, order = torch.sort(index, stable=True)
            if max(index.numel(), num_nodes) < 2**31:
                index, order = index.to(torch.int32), order.to(torch.int32)
        counts = torch.bincount(index, minlength=num_nodes)
        pointer = torch.zeros(num_nodes + 1, dtype=torch.int64, device=index.device)
        torch.cumsum(counts, 0, out=pointer[1:])
        return cls(index, order, pointer)

    def ranges(self, edges_at_once: int) -> Iterator[Range]:
        """Of about so many edges; a receiver with more is a range of its own."""
        num_nodes, num_edges = len(self.pointer) - 1, self.index.numel()
        steps = max(1, -(-num_edges // max(1, edges_at_once)))
        targets = torch.arange(1, steps, device=self.index.device) * edges_at_once
        cuts = torch.searchsorted(self.pointer, targets).clamp(max=num_nodes)
        nodes = [0, *torch.unique(cuts).tolist(), num_nodes]
        places = self.pointer[torch.tensor(nodes, device=cuts.device)].tolist()
        for step in range(len(nodes) - 1):
            of_nodes = slice(nodes[step], nodes[step + 1])
            if of_nodes.start < of_nodes.stop:
                yield Range(of_nodes, slice(places[step], places[step + 1]))

    def take(self, rows: Tensor, edges: slice) -> Tensor:
        """Rows of edge-sized data, (num_edges, ...), of some places."""
        if self.order is None:
            return rows[edges]
        return rows.index_select(0, self.order[edges])


_Key = tuple[int, Geometry, int, int]
_known: dict[_Key, tuple[StorageWeakRef, Receivers]] = {}


def receivers_of(index: Tensor, num_nodes: int) -> Receivers:
    """Sorted once, and kept for as long as the index lives unchanged."""
    storage = index.untyped_storage()
    key = (storage._cdata, geometry_of(index), index._version, num_nodes)
    known = _known.get(key)
    if known is not None and not known[0].expired():
        return known[1]
    for other in [key for key, (alive, _) in _known.items() if alive.expired()]:
        del _known[other]
    found = Receivers.of(index, num_nodes)
    _known[key] = (StorageWeakRef(storage), found)
    return found
