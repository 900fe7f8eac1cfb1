"""Aggregation over a graph that is spread over ranks.

It is an Aggregation like any other: a fixed linear map, whose transpose sends gradients
back. In forward, rows that other ranks have in their halo travel to them; in backward,
gradients of halo rows travel back to their owners, who add them up. So each operation
of gnn/saved.py works on a part as it does on a whole graph.

Features never change. GraphSAGE aggregates them before anything else, so their
aggregation is formed once, from rows that travel as float32, and kept: a step sends
hidden features and their gradients alone.
"""

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pipeline_src.distributed.parts import GraphPart
from pipeline_src.distributed.ranks import Ranks
from pipeline_src.distributed.wire import Wire
from pipeline_src.gnn.aggregation import Aggregation, csr_matrix
from pipeline_src.quant.references import Reference, check_unchanged, watch


class Halo:
    """The rows of one part that travel, and by which wire."""

    def __init__(self, part: GraphPart, ranks: Ranks, wire: Wire) -> None:
        """Join a part to the ranks that own its halo.

        Raises:
            ValueError: if the part is another rank's, or of another number of ranks.
        """
        if (part.rank, part.num_parts) != (ranks.rank, ranks.size):
            raise ValueError(
                f"rank {ranks.rank} of {ranks.size} needs its own part, got that of "
                f"rank {part.rank} of {part.num_parts}; cut the graph again"
            )
        self.part = part
        self.ranks = ranks
        self.wire = wire
        self._seeds: Tensor | None = None
        self._num_exchanges = 0

    def start(
        self,
        seeds: Tensor | None,  # (num_exchanges,) int32; None: all rows as float32
    ) -> None:
        """Begin a step or an evaluation: its exchanges take these seeds in turn."""
        self._seeds, self._num_exchanges = seeds, 0

    def fetch(self, own: Tensor) -> Tensor:
        """Halo rows, (num_halo, width), of (num_own, width) own ones."""
        part = self.part
        return self._exchange(own[part.sent], part.num_sent, part.num_received)

    def give_back(
        self,
        halo: Tensor,  # (num_halo, width) gradients
        own: Tensor,  # (num_own, width) gradients, added to
    ) -> None:
        """Send gradients of halo rows to their owners, and add what arrives."""
        part = self.part
        arrived = self._exchange(halo, part.num_received, part.num_sent)
        own.index_add_(0, part.sent, arrived)

    def _exchange(
        self, rows: Tensor, num_sent: tuple[int, ...], num_received: tuple[int, ...]
    ) -> Tensor:
        wire, seed = Wire(), None
        if self._seeds is not None:
            wire, seed = self.wire, self._seeds[self._num_exchanges]
        self._num_exchanges += 1
        message = wire.encode(rows, seed)
        message = self.ranks.exchange(message, num_sent, num_received)
        return wire.decode(message, rows.shape[1])


@dataclass(frozen=True, eq=False)
class PartAggregation(Aggregation):
    """The rows of an aggregation that one rank owns; `matrix` is the part inside."""

    across: Tensor  # (num_own, num_halo) sparse CSR, float32
    transposed_across: Tensor  # (num_halo, num_own)
    halo: Halo
    _kept: dict[int, tuple[tuple[Reference, ...], Tensor]] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """The dense tensors behind it; directions may share them."""
        parts = super().tensors()
        for matrix in (self.across, self.transposed_across):
            parts += [matrix.crow_indices(), matrix.col_indices(), matrix.values()]
        return parts

    def __call__(self, x: Tensor) -> Tensor:
        """Aggregate features, (num_own, width) to the same shape."""
        if (kept := self._result_of(x)) is not None:
            return kept
        output = super().__call__(x)
        return _add_product(output, self.across, self.halo.fetch(x))

    def keep_result_of(
        self,
        x: Tensor,  # (num_own, width), which never changes
    ) -> None:
        """Aggregate once and for all; every later call with x gets that result.

        Raises:
            RuntimeError: from later calls, if x or the result was changed.
        """
        self.halo.start(None)
        result = self(x)
        watched = watch([("features", x), ("the aggregation of features", result)])
        self._kept[x.data_ptr()] = watched, result

    def _result_of(self, x: Tensor) -> Tensor | None:
        watched, result = self._kept.get(x.data_ptr(), ((), None))
        if result is None or (x.shape, x.stride()) != (result.shape, result.stride()):
            return None
        check_unchanged(watched)
        return result

    def into(self, x: Tensor, output: Tensor) -> None:
        """Aggregate into a tensor that exists, (num_own, width)."""
        super().into(x, output)
        _add_product(output, self.across, self.halo.fetch(x))

    def transpose(self, gradient: Tensor) -> Tensor:
        """Send gradients of the outputs back to the inputs, on whichever rank."""
        output = super().transpose(gradient)
        shape = (self.transposed_across.shape[0], gradient.shape[1])
        halo = _add_product(gradient.new_zeros(shape), self.transposed_across, gradient)
        self.halo.give_back(halo, output)
        return output


def part_aggregation(layer: str, halo: Halo) -> PartAggregation:
    """The rows that a rank owns of mean_aggregation ("sage") or gcn_aggregation.

    On the device of the part.
    """
    device, part = halo.part.nodes.device, halo.part.to("cpu")
    row = torch.arange(part.num_own).repeat_interleave
    inside_row = row(part.inside_pointer.diff().long())
    across_row = row(part.across_pointer.diff().long())
    inside_column = part.inside_column.long()
    across_column = part.across_column.long() + part.num_own
    self_weight = None
    if layer == "sage":
        inverse_degree = 1.0 / part.degree.clamp(min=1).to(torch.float32)
        inside, across = inverse_degree[inside_row], inverse_degree[across_row]
    else:
        looped = part.has_loop.to(torch.float32)
        root = (part.degree.to(torch.float32) + 1.0 - looped).rsqrt()
        inside = root[inside_row] * root[inside_column]
        across = root[across_row] * root[across_column]
        self_weight = ((1.0 - looped) * root * root)[: part.num_own, None]
    matrices = (
        *_both_ways(part.inside_pointer, part.inside_column, inside, part.num_own),
        *_both_ways(part.across_pointer, part.across_column, across, part.num_halo),
    )
    matrix, transposed, outside, back = (one.to(device) for one in matrices)
    if self_weight is not None:
        self_weight = self_weight.to(device)
    return PartAggregation(matrix, transposed, self_weight, outside, back, halo)


def _both_ways(
    pointer: Tensor, column: Tensor, values: Tensor, num_columns: int
) -> tuple[Tensor, Tensor]:
    """A sparse matrix and its transpose."""
    num_rows = pointer.numel() - 1
    matrix = csr_matrix(pointer, column, values, (num_rows, num_columns))
    arrays = (values.numpy(), column.numpy(), pointer.numpy())
    turned = sp.csr_array(arrays, shape=(num_rows, num_columns)).T.tocsr()
    back = csr_matrix(
        torch.from_numpy(turned.indptr.astype(np.int32)),
        torch.from_numpy(turned.indices.astype(np.int32)),
        torch.from_numpy(turned.data),
        (num_columns, num_rows),
    )
    return matrix, back


def _add_product(output: Tensor, matrix: Tensor, x: Tensor) -> Tensor:
    """Output plus matrix times x, in place."""
    if matrix.values().numel():  # nothing to add
        torch.addmm(output, matrix, x, out=output)
    return output
