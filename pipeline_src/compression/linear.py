"""Linear maps: products with weights, sparse products, and the two in a row.

The product of a sparse matrix A and features keeps nothing: its gradient is that of the
output times the transpose, which is made once for a matrix and kept as long as that
lives. A weight that follows is the one case where A x would be wanted in backward,

    z = (A x) W^T,    grad W = (grad z)^T (A x) = (A^T grad z)^T x,

and A^T grad z is what the gradient of x needs anyway. So nothing of A x is kept, and x,
which the layer before keeps in codes, serves in its place.
"""

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.weak import WeakTensorKeyDictionary

from pipeline_src.compression.sources import Cast, Source, runs_of
from pipeline_src.quant.first_order import first_order
from pipeline_src.quant.references import check_unchanged, watch

if TYPE_CHECKING:
    from pipeline_src.compression.scope import Scope

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Aggregated:
    """How A x was made, for a weight that comes after."""

    x: "weakref.ref[Tensor]"
    product: "Product"


class Product:
    """A sparse matrix as the gradient of its product sees it."""

    def __init__(self, matrix: Tensor, reduce: str) -> None:
        """Transposed when that is first asked for."""
        self._matrix, self._reduce = matrix, reduce
        self._watched = watch([("a sparse matrix", part) for part in _dense(matrix)])
        self.shape = matrix.shape

    def transposed(self, gradient: Tensor) -> Tensor:
        """A^T times the gradient of the output, (num_columns, width)."""
        check_unchanged(self._watched)
        matrix = _transposed(self._matrix, self._reduce)
        dtype = gradient.dtype
        values = gradient.to(matrix.dtype).contiguous()
        output = values.new_empty((self.shape[1], values.shape[1]))
        if output.device.type != "cpu":
            output.zero_()  # 0 times NaN of memory that was somebody else's is NaN
        return torch.addmm(output, matrix, values, beta=0, out=output).to(dtype)


# Of each matrix, by the way it is reduced: its transpose in CSR.
_transposes: "WeakTensorKeyDictionary" = WeakTensorKeyDictionary()


def _transposed(matrix: Tensor, reduce: str) -> Tensor:
    known = _transposes.setdefault(matrix, {})
    if reduce not in known:
        known[reduce] = _transpose(matrix, reduce)
    transposed: Tensor = known[reduce]
    return transposed


@torch.no_grad()
def _transpose(matrix: Tensor, reduce: str) -> Tensor:
    csr = matrix if matrix.layout == torch.sparse_csr else matrix.to_sparse_csr()
    pointer, column, values = _dense(csr)
    counts = pointer.diff()
    if reduce == "mean":
        values = values / counts.clamp(min=1).repeat_interleave(counts)
    rows = torch.arange(csr.shape[0], device=column.device).repeat_interleave(counts)
    order = torch.argsort(column, stable=True)
    largest = max(values.numel(), *csr.shape)
    integer = torch.int32 if largest < 2**31 else torch.int64
    back = torch.zeros(csr.shape[1] + 1, dtype=torch.int64, device=column.device)
    back[1:] = torch.bincount(column, minlength=csr.shape[1]).cumsum(0)
    return torch.sparse_csr_tensor(
        back.to(integer),
        rows[order].to(integer),
        values[order],
        size=(csr.shape[1], csr.shape[0]),
        check_invariants=False,
    )


def _dense(matrix: Tensor) -> tuple[Tensor, ...]:
    if matrix.layout == torch.sparse_csr:
        return matrix.crow_indices(), matrix.col_indices(), matrix.values()
    if matrix.layout == torch.sparse_csc:
        return matrix.ccol_indices(), matrix.row_indices(), matrix.values()
    return matrix._indices(), matrix._values()


class _SparseProduct(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor, product: Product) -> Tensor:
        ctx.product = product
        return output.view_as(output)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.product.transposed(gradient), None, None


class _Linear(Function):
    """x W^T + b that keeps a source of x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., num_inputs)
        weight: Tensor,  # (num_outputs, num_inputs)
        bias: Tensor | None,  # (num_outputs,)
        source: Source,  # of x
        product: Product | None,  # x stands for A x, which is the next argument
        input: Tensor,  # what the weight is applied to: x or A x
    ) -> Tensor:
        ctx.source, ctx.product = source, product
        ctx.save_for_backward(weight)
        return torch.nn.functional.linear(input, weight, bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        flat = gradient.reshape(-1, gradient.shape[-1])
        bias_gradient = flat.sum(dim=0) if of_bias else None
        back = gradient
        if ctx.product is not None and (of_x or of_weight):
            back = ctx.product.transposed(flat)
        weight_gradient = None
        if of_weight:
            weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
            source = ctx.source
            for run in runs_of(source.shape, source.device):
                rows = source.rows(run).reshape(-1, weight.shape[1])
                of_run = back[run].reshape(-1, weight.shape[0])
                if of_run.dtype == torch.float32:
                    weight_gradient.addmm_(of_run.T, rows)
                else:
                    weight_gradient += (of_run.T @ rows.to(of_run.dtype)).float()
            weight_gradient = weight_gradient.to(weight.dtype)
        x_gradient = back @ weight if of_x else None
        return x_gradient, weight_gradient, bias_gradient, None, None, None


def linear(
    scope: "Scope", func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Rule for functional.linear."""
    if not _is_trained(input, weight):
        return func(input, weight, bias)
    device = input.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        if dtype not in _FLOATS:
            return func(input, weight, bias)
        cast = input.to(dtype)
        if cast is not input:
            _mark_cast(scope, input, cast)
        input, weight = cast, weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if input.dtype != weight.dtype:
        return func(input, weight, bias)
    with torch.autocast(device, enabled=False):
        known = scope.ledger.known(input)
        made_by = None if known is None else known.made_by
        if isinstance(made_by, Aggregated):
            x = made_by.x()
            if x is not None:
                source = scope.source(x)
                product = made_by.product
                aggregated = input.detach()
                return _Linear.apply(x, weight, bias, source, product, aggregated)
        source = scope.source(input)
        return _Linear.apply(input, weight, bias, source, None, input.detach())


def _mark_cast(scope: "Scope", x: Tensor, cast: Tensor) -> None:
    source = scope.source(x)
    value = scope.ledger.of(cast)
    if value.is_open:
        value.settle(Cast(cast.shape, cast.dtype, cast.device, source))


def _is_trained(input: Tensor, weight: Tensor) -> bool:
    """Whether a gradient of the weight will ask for the input."""
    return (
        isinstance(weight, Tensor)
        and weight.requires_grad
        and weight.ndim == 2
        and weight.layout == torch.strided
        and input.layout == torch.strided
        and input.ndim >= 2
        and input.numel() > 0
        and input.dtype in _FLOATS
        and weight.dtype in _FLOATS
    )


def sparse_product(
    scope: "Scope", func: Any, matrix: Any, x: Any, *others: Any, **named: Any
) -> Any:
    """Rule for products of matrices, where the first is sparse and fixed."""
    reduce = _reduction(others, named)
    if (
        not isinstance(matrix, Tensor)
        or not isinstance(x, Tensor)
        or matrix.layout not in (torch.sparse_csr, torch.sparse_csc, torch.sparse_coo)
        or matrix.requires_grad
        or x.layout != torch.strided
        or x.ndim != 2
        or x.dtype not in _FLOATS
        or reduce not in ("sum", "mean")
    ):
        return func(matrix, x, *others, **named)
    product = Product(matrix, reduce)
    with torch.no_grad():
        output = func(matrix, x, *others, **named)
    if x.requires_grad:
        output = _SparseProduct.apply(x, output, product)
    value = scope.ledger.of(output)
    value.made_by = Aggregated(weakref.ref(x), product)
    return output


def _reduction(others: tuple[Any, ...], named: dict[str, Any]) -> str | None:
    if named.keys() - {"reduce"} or len(others) + len(named) > 1:
        return None
    found = [*others, *named.values()]
    return found[0] if found else "sum"


_SPARSE = (torch.sparse.mm, torch.mm, torch.matmul)
RULES: dict[Any, Any] = {
    torch.nn.functional.linear: linear,
    **dict.fromkeys(_SPARSE, sparse_product),
    **dict.fromkeys((Tensor.mm, Tensor.matmul, Tensor.__matmul__), sparse_product),
}
