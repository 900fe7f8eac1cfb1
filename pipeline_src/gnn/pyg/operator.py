"""Aggregation as an operator of its own, and PyTorch Geometric's layers that use it.

torch.compile splits a network at each product with a sparse matrix, and plans nothing
across the pieces. So the compiled techniques take the product as an operator, with the
transpose at hand, that the compiler need not look into. That is more than SAGEConv
gives, and faster: elsewhere backward is PyTorch's, which transposes the matrix at every
step. autocast takes the operator too, because on a CPU GCNConv's product does not know
bfloat16.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula
from torch_geometric.nn import GCNConv, SAGEConv


@torch.library.custom_op("pipeline_src::aggregate", mutates_args=())
def aggregate(
    x: Tensor,  # (num_nodes, width)
    row_pointer: Tensor,
    column: Tensor,
    values: Tensor,  # of the dtype of x
    back_row_pointer: Tensor,  # the transpose
    back_column: Tensor,
    back_values: Tensor,
) -> Tensor:
    """The product of a sparse CSR matrix and features."""
    matrix = csr_matrix(row_pointer, column, values)
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        return torch.sparse.mm(matrix, x, "sum")  # the other has no bfloat16 there
    output = torch.empty_like(x)
    # torch.sparse.mm would make a second tensor of this size on the way.
    return torch.addmm(output, matrix, x, beta=0, out=output)


@aggregate.register_fake
def _(x: Tensor, *parts: Tensor) -> Tensor:
    return torch.empty_like(x)


def _keep_matrices(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    if any(tensor.requires_grad for tensor in inputs[1:]):
        raise ValueError("weights of edges take no gradient; pass values.detach()")
    ctx.save_for_backward(*inputs[1:])


def _aggregate_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    parts = ctx.saved_tensors
    return aggregate(gradient.contiguous(), *parts[3:], *parts[:3]), *[None] * 6


aggregate.register_autograd(_aggregate_backward, setup_context=_keep_matrices)


@register_flop_formula(torch.ops.pipeline_src.aggregate)
def _aggregate_flops(
    x: torch.Size, row_pointer: torch.Size, column: torch.Size, *parts: Any, **_: Any
) -> int:
    """Multiplications and additions; a memory budget weighs recomputation by them."""
    return 2 * column[0] * x[1]


class OperatorSage(SAGEConv):
    """SAGEConv with the operator in place of its message passing."""

    def propagate(self, edge_index: tuple[Tensor, ...], **tensors: Any) -> Tensor:
        """The mean over neighbours."""
        return aggregate(tensors["x"][0], *edge_index)


class OperatorGcn(GCNConv):
    """GCNConv with the operator in place of its message passing."""

    def propagate(self, edge_index: tuple[Tensor, ...], **tensors: Any) -> Tensor:
        """The weighted sum over neighbours and the node itself."""
        return aggregate(tensors["x"], *edge_index)


def csr_matrix(row_pointer: Tensor, column: Tensor, values: Tensor) -> Tensor:
    """A square sparse matrix of its three parts, which are trusted."""
    num_nodes = row_pointer.numel() - 1
    size = (num_nodes, num_nodes)
    return torch.sparse_csr_tensor(
        row_pointer, column, values, size=size, check_invariants=False
    )
