"""A graph's neighbours in the form that PyTorch Geometric's convolutions take."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from pipeline_src.gnn.aggregation import gcn_aggregation, mean_aggregation
from pipeline_src.gnn.pyg.operator import csr_matrix
from pipeline_src.gnn.pyg.technique import Technique
from pipeline_src.graphs.graph import Adjacency

# What a convolution takes for an edge_index: a sparse CSR matrix, row by receiver, as
# adj_t; for the operator the row pointer, column and values of it and of its transpose.
Edges = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class PygAggregation:
    """Neighbours in the form that the convolutions take."""

    edges: Edges  # float32 values; int32 indices for the operator, else int64
    half: Edges | None = None  # the same in bfloat16, for autocast

    def tensors(self) -> list[Tensor]:
        """The dense tensors behind it; some may share their storage."""
        return [*dense(self.edges), *([] if self.half is None else dense(self.half))]


def aggregation_of(
    layer: str,  # "sage" or "gcn"
    adjacency: Adjacency,
    technique: Technique,
) -> PygAggregation:
    """A graph as a layer takes it under a technique, normalised once."""
    if layer == "sage":
        ours = mean_aggregation(adjacency)
        if not technique.has_operator:
            # SAGEConv takes the mean itself and reads no values but ones.
            row_pointer, column, values = _parts(ours.matrix)
            ones = torch.ones_like(values)
            return PygAggregation(_wide(csr_matrix(row_pointer, column, ones)))
        adj_t, transposed = ours.matrix, ours.transposed_matrix
    else:
        ours = gcn_aggregation(adjacency)
        adj_t = _with_loops(ours.matrix, cast(Tensor, ours.self_weight))
        transposed = adj_t
        if not adjacency.symmetric:
            loops = cast(Tensor, ours.self_weight)
            transposed = _with_loops(ours.transposed_matrix, loops)
        if not technique.has_operator:
            return PygAggregation(_wide(adj_t))
    edges = *_parts(adj_t), *_parts(transposed)
    if technique.name != "autocast":
        return PygAggregation(edges)
    return PygAggregation(
        edges,
        tuple(
            part.to(torch.bfloat16) if part.is_floating_point() else part
            for part in edges
        ),
    )


def dense(edges: Edges) -> tuple[Tensor, ...]:
    """The tensors that edges are made of."""
    return _parts(edges) if isinstance(edges, Tensor) else edges


def _parts(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Detached, because torch.compile takes no view of a sparse tensor.
    return matrix.crow_indices(), matrix.col_indices(), matrix.values().detach()


def _wide(matrix: Tensor) -> Tensor:
    """The same with int64 indices, as PyTorch Geometric's users have them.

    Not only for that: with int32 the backward of torch.sparse.mm(..., reduce) is wrong
    from 46,341 nodes on, whose square no int32 holds.
    """
    row_pointer, column, values = _parts(matrix)
    return csr_matrix(row_pointer.long(), column.long(), values)


def _with_loops(matrix: Tensor, self_weight: Tensor) -> Tensor:
    """The same matrix with a weight on its diagonal; entries there add up."""
    row_pointer, column, values = _parts(matrix)
    nodes = torch.arange(len(self_weight), device=column.device)
    rows = nodes.repeat_interleave(row_pointer.diff())
    entries = torch.sparse_coo_tensor(
        torch.stack([torch.cat([rows, nodes]), torch.cat([column.long(), nodes])]),
        torch.cat([values, self_weight.view(-1)]),
        size=matrix.shape,
        check_invariants=False,
    )
    row_pointer, column, values = _parts(entries.coalesce().to_sparse_csr())
    return csr_matrix(row_pointer.to(torch.int32), column.to(torch.int32), values)
