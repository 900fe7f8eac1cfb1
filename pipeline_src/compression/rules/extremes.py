"""Maxima and minima over the rows of a group, which ask who was the largest.

The gradient goes to the rows that equal the extreme, in equal shares; PyTorch counts
the value that was there before as one of them. A bit for each value tells it all: rows
and extremes are compared in forward, and neither is kept.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pipeline_src.compression.config import Codes
from pipeline_src.compression.keeper import Keeper
from pipeline_src.compression.sources import Bits, runs_of
from pipeline_src.compression.values import Known
from pipeline_src.quant.first_order import first_order
from pipeline_src.quant.references import Reference, check_unchanged, watch

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def scatter_reduce(
    keeper: Keeper,
    func: Any,
    output: Tensor,  # (num_groups, ...)
    dim: int,
    index: Tensor,  # as rows, the same in a row: group of each
    rows: Tensor,  # (num_rows, ...)
    reduce: str,
    *,
    include_self: bool = True,
) -> Tensor:
    """Rule for Tensor.scatter_reduce_ with "amax" and "amin"."""
    if (
        reduce not in ("amax", "amin")
        or include_self
        or output.requires_grad
        or not rows.requires_grad
        or rows.ndim < 2
        or dim % rows.ndim != 0
        or rows.dtype not in _FLOATS
        or index.shape != rows.shape
        or any(
            s for s, n in zip(index.stride()[1:], rows.shape[1:], strict=True) if n > 1
        )
        or output.shape[1:] != rows.shape[1:]
        or rows.numel() < keeper.config.min_numel
        or not isinstance(keeper.choice(), Codes)
    ):
        return func(output, dim, index, rows, reduce, include_self=include_self)
    first: tuple[Any, ...] = (slice(None), *(0,) * (index.ndim - 1))
    groups = index[first]
    before = output.clone()
    with torch.no_grad():
        func(output, dim, index, rows, reduce, include_self=False)
    hits = rows.new_empty(rows.shape, dtype=torch.bool)
    for run in runs_of(rows.shape, rows.device):
        extremes = output.index_select(0, groups[run])
        torch.eq(rows.detach()[run], extremes, out=hits[run])
    result: Tensor = _Extremes.apply(
        rows,
        Known(output),
        Bits.of(hits),
        Bits.of(before == output),
        watch([("an index of rows", groups)]),
    )
    return result


class _Extremes(Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        output: Known,
        hits: Bits,  # rows that equal their group's extreme
        stayed: Bits,  # groups whose extreme is what was there before
        groups: tuple[Reference, ...],
    ) -> Tensor:
        ctx.hits, ctx.stayed, ctx.groups = hits, stayed, groups
        return output.tensor

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        check_unchanged(ctx.groups)
        hits, stayed, groups = ctx.hits, ctx.stayed, ctx.groups[0].tensor
        count = torch.empty_like(gradient)
        for run in runs_of(stayed.shape, stayed.device):
            count[run] = stayed.rows(run)
        runs = runs_of(hits.shape, hits.device)
        for run in runs:
            count.index_add_(0, groups[run], hits.rows(run).to(count.dtype))
        shares = gradient / count
        result = gradient.new_empty(hits.shape)
        for run in runs:
            part = shares.index_select(0, groups[run])
            torch.mul(part, hits.rows(run), out=result[run])
        return result, None, None, None, None


RULES: dict[Any, Any] = {Tensor.scatter_reduce_: scatter_reduce}
