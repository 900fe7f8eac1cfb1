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
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.weak import WeakTensorKeyDictionary

from pipeline_src.compression.keeper import Keeper
from pipeline_src.compression.rules.quotients import quotient
from pipeline_src.compression.sources import Cast, Source, runs_of
from pipeline_src.compression.values import Known
from pipeline_src.quant.first_order import first_order
from pipeline_src.quant.references import Reference, check_unchanged, watch

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Origin:
    """A tensor that something was made of, as long as it is there and unchanged."""

    def __init__(self, tensor: Tensor) -> None:
        """Referred to weakly."""
        self._reference, self._version = weakref.ref(tensor), tensor._version

    def __call__(self) -> Tensor | None:
        """It, or None."""
        tensor = self._reference()
        if tensor is None or tensor._version != self._version:
            return None
        return tensor


@dataclass(frozen=True, eq=False)
class Aggregated:
    """How A x was made, for a weight that comes after."""

    x: Origin
    product: "Map"


class Map(Protocol):
    """A fixed linear map of rows, as the gradient of its output sees it."""

    def transposed(self, gradient: Tensor) -> Tensor:
        """Gradient of the input, (num_columns, width)."""
        ...


@dataclass(frozen=True, eq=False)
class Divided:
    """A map whose output's rows are divided by numbers, as for a mean."""

    of: Map
    divisor: Tensor  # (num_rows, 1)
    watched: tuple[Reference, ...]

    def transposed(self, gradient: Tensor) -> Tensor:
        """See Map."""
        check_unchanged(self.watched)
        return self.of.transposed(gradient / self.divisor)


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
    def forward(ctx: Any, x: Tensor, output: Known, product: Product) -> Tensor:
        ctx.product = product
        return output.tensor

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.product.transposed(gradient), None, None


@dataclass(frozen=True, eq=False)
class _Term:
    """A weight and what it is applied to: x itself, or a sparse product with it."""

    weight: Tensor  # (num_outputs, num_inputs)
    bias: Tensor | None  # (num_outputs,)
    product: Map | None


@dataclass(frozen=True, eq=False)
class _Mapped:
    """How a sum of terms was made, for another one that is added."""

    x: Origin
    source: Source
    terms: tuple[_Term, ...]


class _Linear(Function):
    """A sum of weights applied to x, or to sparse products with x; keeps a source."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., num_inputs)
        source: Source,  # of x
        products: tuple[Map | None, ...],  # of each term
        output: Known,  # (..., num_outputs)
        *parameters: Tensor | None,  # weight and bias of each term
    ) -> Tensor:
        ctx.source, ctx.products = source, products
        ctx.save_for_backward(*parameters[::2])
        return output.tensor

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights: tuple[Tensor, ...] = ctx.saved_tensors
        of_x, needed = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        flat = gradient.reshape(-1, gradient.shape[-1])
        # Of each term: the gradient as x sees it.
        backs = [
            flat if product is None else product.transposed(flat)
            for product in ctx.products
        ]
        found = [
            torch.zeros_like(weight, dtype=torch.float32) if wanted else None
            for weight, wanted in zip(weights, needed[::2], strict=True)
        ]
        source = ctx.source
        shape = (backs[0].shape[0], source.shape[-1])
        x_gradient = None
        if of_x:
            # Rows of a sparse product are ours, and done with once they are read.
            fits = ctx.products[0] is not None and backs[0].shape == shape
            x_gradient = backs[0] if fits else backs[0].new_empty(shape)
        per_row = shape[0] // max(1, source.shape[0])
        for run in runs_of(source.shape, source.device):
            of = slice(run.start * per_row, run.stop * per_row)
            rows = source.rows(run).reshape(-1, shape[1])
            for total, back in zip(found, backs, strict=True):
                if total is not None:
                    _add_product(total, back[of].T, rows)
            if x_gradient is not None:
                part = backs[0][of] @ weights[0]
                for back, weight in zip(backs[1:], weights[1:], strict=True):
                    part.addmm_(back[of], weight)
                x_gradient[of] = part
        biases = [flat.sum(dim=0) if wanted else None for wanted in needed[1::2]]
        typed = [
            None if total is None else total.to(weight.dtype)
            for total, weight in zip(found, weights, strict=True)
        ]
        if x_gradient is not None:
            x_gradient = x_gradient.view(source.shape)
        pairs = zip(typed, biases, strict=True)
        return x_gradient, None, None, None, *(one for pair in pairs for one in pair)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total += (left @ right.to(left.dtype)).float()


def linear(
    keeper: Keeper, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None
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
            _mark_cast(keeper, input, cast)
        input, weight = cast, weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if input.dtype != weight.dtype:
        return func(input, weight, bias)
    with torch.autocast(device, enabled=False):
        x, product = input, None
        known = keeper.ledger.known(input)
        made_by = None if known is None else known.made_by
        if isinstance(made_by, Aggregated) and (origin := made_by.x()) is not None:
            x, product = origin, made_by.product
        with torch.no_grad():
            output = func(input, weight, bias)
        term = _Term(weight, bias, product)
        return _mapped(keeper, x, keeper.source(x), (term,), output)


def _mapped(
    keeper: Keeper, x: Tensor, source: Source, terms: tuple[_Term, ...], output: Tensor
) -> Tensor:
    parameters = [one for term in terms for one in (term.weight, term.bias)]
    products = tuple(term.product for term in terms)
    output = _Linear.apply(x, source, products, Known(output), *parameters)
    keeper.ledger.of(output).made_by = _Mapped(Origin(x), source, terms)
    return output


def add(keeper: Keeper, func: Any, one: Any, other: Any, **named: Any) -> Any:
    """Rule for sums: of two maps of one x, backward reads that x once."""
    made = [_made_by(keeper, part) for part in (one, other)]
    left, right = made
    if (
        left is not None
        and right is not None
        and not named
        and left.source is right.source
        and one.shape == other.shape
        and one.dtype == other.dtype
        and (x := left.x()) is not None
    ):
        with torch.no_grad():
            total = func(one, other)
        return _mapped(keeper, x, left.source, left.terms + right.terms, total)
    return func(one, other, **named)


def divide(keeper: Keeper, func: Any, one: Any, other: Any, **named: Any) -> Any:
    """Rule for quotients: sums over neighbours by their number are a map as well."""
    result = quotient(keeper, func, one, other, **named)
    known = keeper.ledger.known(one) if isinstance(one, Tensor) else None
    made_by = None if known is None else known.made_by
    if (
        isinstance(made_by, Aggregated)
        and isinstance(other, Tensor)
        and not other.requires_grad
        and not named
        and result.ndim == 2
        and other.shape in (result.shape, (len(result), 1))
        and (other.shape[1] == 1 or other.stride(1) == 0)
    ):
        divisor = other[:, :1]
        watched = watch([("a number of neighbours", divisor)])
        product = Divided(made_by.product, divisor, watched)
        keeper.ledger.of(result).made_by = Aggregated(made_by.x, product)
    return result


def _made_by(keeper: Keeper, part: Any) -> _Mapped | None:
    if not isinstance(part, Tensor) or part.layout != torch.strided:
        return None
    known = keeper.ledger.known(part)
    made_by = None if known is None else known.made_by
    return made_by if isinstance(made_by, _Mapped) else None


def _mark_cast(keeper: Keeper, x: Tensor, cast: Tensor) -> None:
    source = keeper.source(x)
    value = keeper.ledger.of(cast)
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
    keeper: Keeper, func: Any, matrix: Any, x: Any, *others: Any, **named: Any
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
        output = _SparseProduct.apply(x, Known(output), product)
    value = keeper.ledger.of(output)
    value.made_by = Aggregated(Origin(x), product)
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
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__), add),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__), divide),
    **dict.fromkeys((Tensor.mm, Tensor.matmul, Tensor.__matmul__), sparse_product),
}
