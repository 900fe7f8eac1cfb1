"""Division by an activation.

With q = a / b,

    grad a = (grad q) / b,    grad b = -(grad q) q / b.

Each is linear in one thing that codes can stand for: 1 / b, which may be near a pole,
and q / b, or q alone where b is so small that it is kept as it is.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pipeline_src.compression.keeper import Keeper
from pipeline_src.compression.rules.derivatives import codes_of, kept
from pipeline_src.compression.sources import Source, runs_of, whole
from pipeline_src.compression.values import Known
from pipeline_src.quant.first_order import first_order

_SMALL = 8  # times fewer values than the quotient


def quotient(keeper: Keeper, func: Any, one: Any, other: Any, **named: Any) -> Any:
    """A quotient of two activations, of which the divisor is trained."""
    codes = codes_of(keeper, other)
    if (
        not isinstance(other, Tensor)
        or not other.requires_grad
        or not isinstance(one, Tensor)
        or named
        or one.layout != torch.strided
        or one.dtype != other.dtype
    ):
        return func(one, other, **named)
    shape = torch.broadcast_shapes(one.shape, other.shape)
    is_small = other.numel() * _SMALL <= shape.numel()
    if is_small:
        like = one.detach().requires_grad_()
        codes = codes_of(keeper, like)
    if codes is None or one.shape != shape or not (is_small or other.shape == shape):
        return func(one, other)
    with torch.no_grad():
        output = func(one, other)
    if is_small:
        share = keeper.source_of_its_own(output)
        return _BySmall.apply(one, other, Known(output), keeper.exact(other), share)

    def inverse(run: slice) -> Tensor:
        return other.detach()[run].reciprocal()

    def slope(run: slice) -> Tensor:
        return output[run] / other.detach()[run]

    of_one = kept(keeper, other, inverse, None) if one.requires_grad else None
    of_other = kept(keeper, other, slope, None)
    return _Quotient.apply(one, other, Known(output), of_one, of_other)


class _Quotient(Function):
    """Of tensors of one shape."""

    @staticmethod
    def forward(
        ctx: Any,
        one: Tensor,
        other: Tensor,
        output: Known,
        inverse: Source | None,  # 1 / other
        slope: Source,  # one / other**2
    ) -> Tensor:
        ctx.inverse, ctx.slope = inverse, slope
        return output.tensor

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_one = None if ctx.inverse is None else torch.empty_like(gradient)
        of_other = torch.empty_like(gradient)
        for run in runs_of(gradient.shape, gradient.device):
            part = gradient[run]
            if of_one is not None:
                of_one[run] = part * ctx.inverse.rows(run)
            of_other[run] = -part * ctx.slope.rows(run)
        return of_one, of_other, None, None, None


class _BySmall(Function):
    """By what is far smaller, and is broadcast."""

    @staticmethod
    def forward(
        ctx: Any,
        one: Tensor,
        other: Tensor,
        output: Known,
        divisor: Source,  # other, exactly
        share: Source,  # the quotient
    ) -> Tensor:
        ctx.divisor, ctx.share = divisor, share
        return output.tensor

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        divisor, share = whole(ctx.divisor), ctx.share
        of_one = gradient / divisor if ctx.needs_input_grad[0] else None
        # Sums over what the divisor was broadcast to; rows are its own, or shared too.
        padded = divisor.view((1,) * (gradient.ndim - divisor.ndim) + divisor.shape)
        total = torch.zeros(padded.shape, dtype=torch.float32, device=gradient.device)
        has_rows = padded.shape[0] == gradient.shape[0]
        for run in runs_of(gradient.shape, gradient.device):
            part = gradient[run].float() * share.rows(run)
            of = run if has_rows else slice(None)
            total[of] += part.sum_to_size(total[of].shape)
        of_other = (-total / padded).view(divisor.shape).to(divisor.dtype)
        return of_one, of_other, None, None, None
