"""Sparse aggregation over neighbours, forward and transposed.

An Aggregation is a fixed linear map on node features: the mean over in-neighbours
(GraphSAGE, Hamilton et al. 2017) or the symmetric normalisation with self loops
D^-1/2 (A + I) D^-1/2 (GCN, Kipf & Welling 2017). Being linear and fixed, it needs
nothing of its input for backward. The structure of a symmetric graph serves both
directions; only the weights of the entries differ, and only for the mean.

On a CPU repeated trainings give equal bits, which tests hold. On CUDA the product is
cuSPARSE's, of which two things were not found in writing: that it leaves an output
unread where beta is 0, and that it repeats bit for bit. The first is not left to
chance: the output is filled with zeros, one write of it beside a read for each entry.
The second is not known; `make gpu` counts the values that differ between repetitions.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_src.graphs.graph import Adjacency
from pipeline_src.quant.dtypes import check_dtype
from pipeline_src.quant.references import Reference, watch

# Devices whose product is known not to read the output it overwrites.
_OVERWRITES = {"cpu"}


@dataclass(frozen=True, eq=False)
class Aggregation:
    """A weighted sum over neighbours, plus a weighted share of the node itself."""

    matrix: Tensor  # (num_nodes, num_nodes) sparse CSR, float32
    transposed_matrix: Tensor  # its transpose; the same tensor where they are equal
    self_weight: Tensor | None  # (num_nodes, 1) float32, or None for none

    def tensors(self) -> list[Tensor]:
        """The dense tensors behind it; directions may share them."""
        parts = [self.self_weight] if self.self_weight is not None else []
        for matrix in (self.matrix, self.transposed_matrix):
            parts += [matrix.crow_indices(), matrix.col_indices(), matrix.values()]
        return parts

    def watched(self) -> tuple[Reference, ...]:
        """The same, to be checked before backward reads them."""
        return watch(("the aggregation's matrix", tensor) for tensor in self.tensors())

    def __call__(self, x: Tensor) -> Tensor:
        """Aggregate features, (num_nodes, width) to the same shape."""
        return self._apply(self.matrix, x, torch.empty_like(x))

    def into(self, x: Tensor, output: Tensor) -> None:
        """Aggregate into a tensor that exists, (num_nodes, width)."""
        self._apply(self.matrix, x, output)

    def transpose(self, gradient: Tensor) -> Tensor:
        """Send gradients of the outputs back to the inputs."""
        return self._apply(self.transposed_matrix, gradient, torch.empty_like(gradient))

    def _apply(self, matrix: Tensor, x: Tensor, output: Tensor) -> Tensor:
        check_dtype(x, "features", (torch.float32,))
        if output.device.type not in _OVERWRITES:
            output.zero_()  # 0 times NaN of memory that was somebody else's is NaN
        # torch.sparse.mm would make a second tensor of this size on the way.
        torch.addmm(output, matrix, x, beta=0, out=output)
        if self.self_weight is not None:
            output.addcmul_(x, self.self_weight)
        return output


def mean_aggregation(adjacency: Adjacency) -> Aggregation:
    """Mean over in-neighbours; a node without any gets zeros."""
    inverse_degree = 1.0 / adjacency.degree.clamp(min=1).to(torch.float32)
    source = adjacency.transposed or adjacency
    return Aggregation(
        matrix=_csr(adjacency, inverse_degree[_rows(adjacency)]),
        transposed_matrix=_csr(source, inverse_degree[source.column]),
        self_weight=None,
    )


def gcn_aggregation(adjacency: Adjacency) -> Aggregation:
    """Symmetric normalisation with one self loop per node.

    A self loop that the graph already has is not doubled.
    """
    is_loop = _rows(adjacency) == adjacency.column
    has_loop = torch.zeros(adjacency.num_nodes, device=is_loop.device)
    has_loop[adjacency.column[is_loop]] = 1.0
    degree = adjacency.degree.to(torch.float32) + 1.0 - has_loop
    root = degree.rsqrt()
    matrix = _csr(adjacency, root[_rows(adjacency)] * root[adjacency.column])
    transposed = matrix
    if adjacency.transposed is not None:
        other = adjacency.transposed
        transposed = _csr(other, root[_rows(other)] * root[other.column])
    return Aggregation(
        matrix=matrix,
        transposed_matrix=transposed,
        self_weight=((1.0 - has_loop) * root * root)[:, None],
    )


def _rows(adjacency: Adjacency) -> Tensor:
    """The row of each entry, (num_entries,) int32."""
    counts = adjacency.row_pointer.diff()
    rows = torch.arange(adjacency.num_nodes, dtype=torch.int32, device=counts.device)
    return rows.repeat_interleave(counts)


def csr_matrix(
    row_pointer: Tensor,  # (num_rows + 1,) int32
    column: Tensor,  # (num_entries,) int32, increasing within a row
    values: Tensor,  # (num_entries,) float32
    size: tuple[int, int],
) -> Tensor:
    """A sparse CSR tensor of rows that are known to be in order."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in")
        # torch 2.11 says so although it is told which.
        warnings.filterwarnings("ignore", message="Sparse invariant checks are impl")
        return torch.sparse_csr_tensor(
            row_pointer,
            column,
            values,
            size=size,
            check_invariants=False,  # read_graph has checked them
        )


def _csr(structure: Adjacency, values: Tensor) -> Tensor:
    size = (structure.num_nodes, structure.num_nodes)
    return csr_matrix(structure.row_pointer, structure.column, values, size)
