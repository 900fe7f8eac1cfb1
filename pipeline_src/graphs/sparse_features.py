"""Training on input features that are mostly zero: only the other entries are read.

A bag of words is nearly empty (Cora 1.27 % of entries, CiteSeer 0.85 %), and dropout
and the product with the first layer's weights are most of a training step. Both leave
zeros zero, so both work on the other entries alone: dropout draws a number for each of
them, and the product is that of a sparse matrix. The input takes no gradient; that of
the weights is the transposed product. Sums run in another order than a dense product's,
so results agree with it up to rounding.

Zeros survive packing by row as well (the smallest value of a row is code 0), so
fine-tuning on decoded features is as sparse.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from pipeline_src.quant.dtypes import as_floats
from pipeline_src.quant.first_order import first_order
from pipeline_src.quant.references import check_unchanged, watch

# Where the two ways cost about the same on a CPU lies between PubMed (a tenth of the
# entries, faster like this) and Computers (a third, slower).
MOST_ENTRIES = 1 / 8


@dataclass(frozen=True, eq=False)
class SparseFeatures:
    """Entries of a matrix (num_rows, num_features) that are not zero."""

    row_pointer: Tensor  # (num_rows + 1,) int64
    column: Tensor  # (num_entries,) int64
    values: Tensor  # (num_entries,) float32, row by row
    column_pointer: Tensor  # (num_features + 1,) int64
    row: Tensor  # (num_entries,) int64, column by column
    by_column: Tensor  # (num_entries,) int64: entries, column by column

    @classmethod
    def of(cls, x: Tensor) -> "SparseFeatures":
        """Keep a matrix without loss; waits for the device.

        Raises:
            ValueError: if the matrix needs a gradient, which the entries left out
                would not get.
            TypeError: if it does not hold real numbers.
        """
        if x.requires_grad:
            raise ValueError(
                "features that need a gradient cannot be kept without their zeros, "
                "which need one too; pass them dense, or x.detach()"
            )
        x = as_floats(x)
        row, column = x.nonzero(as_tuple=True)
        by_column = torch.argsort(column, stable=True)
        return cls(
            _pointer(row, x.shape[0]),
            column,
            x[row, column],
            _pointer(column, x.shape[1]),
            row[by_column],
            by_column,
        )

    def linear(self, weight: Tensor, dropout: float, training: bool) -> Tensor:
        """Product of the features, some dropped, with weights, (num_rows, width)."""
        values = functional.dropout(self.values, dropout, training)
        return _SparseProduct.apply(weight, values, self)

    def product(self, values: Tensor, weight: Tensor) -> Tensor:
        """These entries with other values, times weight.t(): (num_rows, width)."""
        shape = (self.row_pointer.numel() - 1, self.column_pointer.numel() - 1)
        matrix = _csr(self.row_pointer, self.column, values, shape)
        return matrix @ weight.t().contiguous()

    def transposed_product(self, values: Tensor, gradient: Tensor) -> Tensor:
        """The transpose times a gradient (num_rows, width): (num_features, width)."""
        shape = (self.column_pointer.numel() - 1, self.row_pointer.numel() - 1)
        values = values.index_select(0, self.by_column)
        return _csr(self.column_pointer, self.row, values, shape) @ gradient


class _SparseProduct(Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, values: Tensor, features: SparseFeatures
    ) -> Tensor:
        """Product with the transposed weights."""
        if values.requires_grad:
            raise ValueError(
                "entries of SparseFeatures take no gradient; make them from x.detach()"
            )
        ctx.values, ctx.features = values, features
        ctx.references = watch(
            [
                ("values", values),
                ("column_pointer", features.column_pointer),
                ("row", features.row),
                ("by_column", features.by_column),
            ]
        )
        return features.product(values, weight)

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the weights; features take none."""
        check_unchanged(ctx.references)
        gradient = gradients[0].contiguous()
        return ctx.features.transposed_product(ctx.values, gradient).t(), None, None


def _pointer(index: Tensor, size: int) -> Tensor:
    """Where the entries of each row start, (size + 1,) int64, from their rows."""
    counts = torch.bincount(index, minlength=size)
    return functional.pad(counts.cumsum(0), (1, 0))


def _csr(pointer: Tensor, index: Tensor, values: Tensor, shape: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in")
        return torch.sparse_csr_tensor(
            pointer, index, values, size=shape, check_invariants=False
        )
