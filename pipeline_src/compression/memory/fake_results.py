"""Shapes of results that PyTorch's fake tensors refuse to tell or do not know.

Products of sparse matrices, and what depends on values: known masks are looked at, and
unknown ones select everything (fakes.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from pipeline_src.compression.memory.sparse_parts import parts

aten = torch.ops.aten
# Attribute of a fake pointer to rows: what their counts add up to.
TOTAL = "_total"
WAY_OUT = (
    "give the integers of the input as tensors with values (their floats may stay "
    'on "meta"), or take the step itself with fake=False'
)


class UnknownValueError(ValueError):
    """A shape or a branch depends on a value that nobody gave."""


def _known_positions(mask: Tensor) -> tuple[Tensor, ...]:
    """Where a mask is true; everywhere, if that is not known."""
    if not isinstance(mask, FakeTensor):
        with _disable_current_modes():
            return mask.nonzero(as_tuple=True)
    count = mask.numel()
    return tuple(mask.new_empty(count, dtype=torch.int64) for _ in range(mask.ndim))


def _index(func: Any, x: Tensor, indices: list[Any], *others: Any, **named: Any) -> Any:
    expanded: list[Any] = []
    for one in indices:
        if isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8):
            expanded += _known_positions(one)
        else:
            expanded.append(one)
    return func(x, expanded, *others, **named)


def _nonzero(func: Any, mask: Tensor) -> Tensor:
    return mask.new_empty((mask.numel(), mask.ndim), dtype=torch.int64)


def _repeat_interleave(
    func: Any, repeats: Tensor, *, output_size: int | None = None
) -> Tensor:
    total = getattr(repeats, TOTAL, None) if output_size is None else output_size
    return func(repeats) if total is None else repeats.new_empty(total)


def _bincount(
    func: Any, x: Tensor, weights: Tensor | None = None, minlength: int = 0
) -> Tensor:
    if minlength == 0:
        raise UnknownValueError(f"{func} needs values that are not known; {WAY_OUT}")
    dtype = torch.int64 if weights is None else torch.float64
    return x.new_empty(minlength, dtype=dtype)


def _masked_select(func: Any, x: Tensor, mask: Tensor) -> Tensor:
    if isinstance(mask, FakeTensor):
        return x.new_empty(torch.broadcast_shapes(x.shape, mask.shape).numel())
    return x.new_empty(
        int(mask.expand(torch.broadcast_shapes(x.shape, mask.shape)).sum())
    )


def _product(func: Any, matrix: Tensor, x: Tensor) -> Tensor:
    if matrix.layout == torch.strided or x.layout != torch.strided:
        return func(matrix, x)
    return x.new_empty((matrix.shape[0], x.shape[1]))


def _reduction(func: Any, matrix: Tensor, x: Tensor, reduce: str) -> tuple[Tensor, ...]:
    shape = (matrix.shape[0], x.shape[1])
    chosen = shape if reduce in ("amax", "amin") else (0,)
    return x.new_empty(shape), x.new_empty(chosen, dtype=parts(matrix)[1].dtype)


def _reduction_gradient(
    func: Any,
    matrix: Tensor,
    gradient: Tensor,
    x: Tensor,
    reduce: str,
    chosen: Tensor,
    wanted: list[bool],
) -> tuple[Tensor | None, ...]:
    if wanted[0]:
        raise UnknownValueError(
            "nothing tells the shape of the gradient of a sparse matrix; take the step "
            "itself with fake=False"
        )
    return None, torch.empty_like(x) if wanted[1] else None


def _sum_product(
    func: Any, y: Tensor, matrix: Tensor, x: Tensor, out: Any = None, **named: Any
) -> Tensor:
    if matrix.layout == torch.strided or x.layout != torch.strided:
        named = named if out is None else named | {"out": out}
        return func(y, matrix, x, **named)
    return x.new_empty((matrix.shape[0], x.shape[1])) if out is None else out


# Shapes of results that fake tensors refuse or do not know.
SHAPES: dict[Any, Callable[..., Any]] = {
    aten.mm.default: _product,
    aten.addmm.default: _sum_product,
    aten.addmm.out: _sum_product,
    aten._sparse_addmm.default: _sum_product,
    aten._sparse_mm_reduce_impl.default: _reduction,
    aten._sparse_mm_reduce_impl_backward.default: _reduction_gradient,
    aten.bincount.default: _bincount,
    aten.repeat_interleave.Tensor: _repeat_interleave,
    aten.index.Tensor: _index,
    aten.index_put.default: _index,
    aten.index_put_.default: _index,
    aten._index_put_impl_.default: _index,
    aten.nonzero.default: _nonzero,
    aten.masked_select.default: _masked_select,
}
