"""In which runs messages are passed, so that no float tensor per edge is ever whole.

Packed rows are dequantised where they are consumed: a run of receiving nodes takes the
rows of its senders, weighs and sums them, and forgets them. So the floats alive at a
time are those of one run, `run_values`, however many edges the graph has; a sparse
matrix product instead would need all rows as floats at once. Receivers are taken in the
order of their degree buckets and no run crosses from one bucket to the next: all
attention values of a run have one width. Every node receives from itself, once.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline_src.gnn.aggregation import Aggregation, gcn_aggregation
from pipeline_src.gnn.feature_bits import FeatureBits
from pipeline_src.graphs.edges import rows_from_edges
from pipeline_src.graphs.graph import Adjacency
from pipeline_src.quant.feature_store import FeatureStore, RowGroups

# Floats gathered at a time: 1 MiB, small beside stores worth packing. A GPU with room
# runs faster with more.
RUN_VALUES = 2**18


@dataclass(frozen=True, eq=False)
class Run:
    """Some receivers of one degree bucket, and what they receive from."""

    bucket: int
    receivers: Tensor  # (num_receivers,) int64 node numbers
    pointer: Tensor  # (num_receivers + 1,) int64: where each one's edges start
    owner: Tensor  # (num_edges,) int64: which receiver of the run an edge ends at
    senders: Tensor  # (num_edges,) int32 node numbers


@dataclass(frozen=True, eq=False)
class MessagePlan:
    """Edges with self loops, receiver by receiver in the order of their buckets."""

    adjacency: Adjacency
    groups: RowGroups | None  # nodes by degree bucket; None: one bucket
    row_pointer: Tensor  # (num_nodes + 1,) int64, of receivers in that order
    column: Tensor  # (num_edges,) int32 senders
    # bucket, first and last + 1 receiver, first and last + 1 edge of each run
    bounds: tuple[tuple[int, int, int, int, int], ...]
    width: int  # widest row that is gathered per edge
    run_values: int = RUN_VALUES

    @classmethod
    def of(
        cls,
        adjacency: Adjacency,
        bits: FeatureBits | None,  # None: one bucket
        width: int,  # widest row that is gathered per edge
        run_values: int = RUN_VALUES,
    ) -> "MessagePlan":
        """Plan once per graph; waits for the device."""
        num_nodes, device = adjacency.num_nodes, adjacency.column.device
        sizes: tuple[int, ...] = (num_nodes,)
        groups, place = None, np.arange(num_nodes)
        if bits is not None and bits.num_buckets > 1:
            groups = RowGroups.of(bits.bucket(adjacency.degree), bits.num_buckets)
            sizes, place = groups.sizes, groups.position.cpu().numpy()
        sender = adjacency.column.cpu().numpy()
        receiver = np.repeat(np.arange(num_nodes), adjacency.degree.cpu().numpy())
        node = np.arange(num_nodes)
        row_pointer, column = rows_from_edges(
            np.concatenate([sender, node]),
            place[np.concatenate([receiver, node])],
            num_nodes,
        )
        return cls(
            adjacency,
            groups,
            torch.from_numpy(row_pointer.astype(np.int64)).to(device),
            torch.from_numpy(column).to(device),
            _bounds(row_pointer, sizes, max(run_values // width, 1)),
            width,
            run_values,
        )

    def in_runs_of(self, run_values: int) -> "MessagePlan":
        """The same edges in longer or shorter runs; waits for the device."""
        sizes = (self.num_nodes,) if self.groups is None else self.groups.sizes
        pointer = self.row_pointer.cpu().numpy()
        bounds = _bounds(pointer, sizes, max(run_values // self.width, 1))
        return replace(self, bounds=bounds, run_values=run_values)

    @property
    def num_nodes(self) -> int:
        """Nodes, all of which receive."""
        return self.row_pointer.numel() - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the edges, which inference needs beside features."""
        order = 0 if self.groups is None else self.groups.order.nbytes
        return order + self.row_pointer.nbytes + self.column.nbytes

    @functools.cached_property
    def inverse_root_degree(self) -> Tensor:
        """(num_nodes,) float32, of degrees with self loops: GCN's weights."""
        return self.in_node_order(self.row_pointer.diff().to(torch.float32).rsqrt())

    @functools.cached_property
    def gcn(self) -> Aggregation:
        """The same weights as a sparse matrix, for backward; made when first asked."""
        return gcn_aggregation(self.adjacency)

    def runs(self) -> Iterator[Run]:
        """One run after another, in the order of row_pointer."""
        for bucket, first, last, start, stop in self.bounds:
            pointer = self.row_pointer[first : last + 1]
            place = torch.arange(last - first, device=pointer.device)
            owner = place.repeat_interleave(pointer.diff(), output_size=stop - start)
            receivers = place + first
            if self.groups is not None:
                receivers = self.groups.order[first:last]
            pointer = pointer - start
            yield Run(bucket, receivers, pointer, owner, self.column[start:stop])

    def receive(self, message: Callable[[Run], Tensor]) -> Tensor:
        """What all nodes receive, (num_nodes, ...), given what those of a run do."""
        received = join(map(message, self.runs()), self.num_nodes)
        return self.in_node_order(received)

    def in_node_order(self, x: Tensor) -> Tensor:
        """Rows in the order of runs -> rows in the order of nodes."""
        return x if self.groups is None else x.index_select(0, self.groups.position)

    def by_rows(
        self, store: FeatureStore, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """A function of each row, applied to runs of dequantised rows."""
        size = max(self.run_values // store.num_features, 1)
        starts = range(0, store.num_rows, size)
        parts = (
            function(store.rows(start, min(start + size, store.num_rows)))
            for start in starts
        )
        return join(parts, store.num_rows)


def join(parts: Iterable[Tensor], num_rows: int) -> Tensor:
    """Rows one part after another; without autograd, no second copy of all."""
    if num_rows == 0:
        raise ValueError("expected at least one row, got an empty graph")
    if torch.is_grad_enabled():
        return torch.cat(list(parts))
    output, start = None, 0
    for part in parts:
        if output is None:
            output = part.new_empty((num_rows, *part.shape[1:]))
        output[start : start + part.shape[0]] = part
        start += part.shape[0]
    assert output is not None, "there are rows, so there are parts"
    return output


def _bounds(
    row_pointer: np.ndarray, sizes: tuple[int, ...], num_edges: int
) -> tuple[tuple[int, int, int, int, int], ...]:
    """Longest runs of at most num_edges edges; a node with more has its own."""
    bounds = []
    first = 0
    for bucket, end in enumerate(np.cumsum(sizes).tolist()):
        while first < end:
            start = int(row_pointer[first])
            fit = int(np.searchsorted(row_pointer, start + num_edges, side="right"))
            last = min(max(fit - 1, first + 1), end)
            bounds.append((bucket, first, last, start, int(row_pointer[last])))
            first = last
    return tuple(bounds)
