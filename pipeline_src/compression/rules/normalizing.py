"""Softmax and LayerNorm, which meet what they keep twice.

The gradient of y = softmax(x) is y (g - sum of g y), and that of LayerNorm, with
z = (x - mean) / deviation and h = g times its weight,

    (h - mean of h - z mean of (h z)) / deviation.

Both are linear in each of two places. With codes of one noise in both the mean is off
by its variance; with a noise of its own in each it is right. The second place is
averaged over a row, and noise with it: it takes the fewer bits. log_softmax meets
exp(y) once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from pipeline_src.compression.keeper import Keeper
from pipeline_src.compression.rules.derivatives import codes_of, kept
from pipeline_src.compression.sources import Source, runs_of
from pipeline_src.compression.uses import Use
from pipeline_src.compression.values import Known
from pipeline_src.quant.first_order import first_order


def softmax(keeper: Keeper, func: Any, input: Tensor, *args: Any, **named: Any) -> Any:
    """Rule for softmax and log_softmax over the last dimension."""
    codes = codes_of(keeper, input)
    dim = named.get("dim", args[0] if args else None)
    if (
        codes is None
        or input.ndim < 2
        or dim not in (-1, input.ndim - 1)
        or named.get("dtype") is not None
    ):
        return func(input, *args, **named)
    with torch.no_grad():
        output = func(input, *args, **named)
    if output.dtype != input.dtype:
        return func(input, *args, **named)
    # Shares of very different sizes: a float errs by a share of itself.
    if func in _LOG:
        share = kept(keeper, output, lambda run: output[run].exp(), None)
        return _LogSoftmax.apply(input, Known(output), share)
    share = kept(keeper, output, lambda run: output[run], None)
    averaged = kept(keeper, output, lambda run: output[run], codes)
    return _Softmax.apply(input, Known(output), share, averaged)


class _Softmax(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, output: Known, share: Source, averaged: Source
    ) -> Tensor:
        ctx.share, ctx.averaged = share, averaged
        return output.tensor

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        result = torch.empty_like(gradient)
        for run in runs_of(gradient.shape, gradient.device):
            part = gradient[run]
            mean = (part * ctx.averaged.rows(run)).sum(dim=-1, keepdim=True)
            result[run] = ctx.share.rows(run) * (part - mean)
        return result, None, None, None


class _LogSoftmax(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Known, share: Source) -> Tensor:
        ctx.share = share
        return output.tensor

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        result = torch.empty_like(gradient)
        for run in runs_of(gradient.shape, gradient.device):
            part = gradient[run]
            total = part.sum(dim=-1, keepdim=True)
            result[run] = part - ctx.share.rows(run) * total
        return result, None, None


def layer_norm(
    keeper: Keeper,
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Rule for functional.layer_norm over the last dimension."""
    codes, fewer = codes_of(keeper, input), codes_of(keeper, input, Use.LINEAR)
    shape = tuple(normalized_shape)
    if (
        codes is None
        or fewer is None
        or input.ndim < 2
        or shape != tuple(input.shape[-1:])
        or any(one is not None and one.dtype != input.dtype for one in (weight, bias))
    ):
        return func(input, normalized_shape, weight, bias, eps)
    with torch.no_grad():
        output, mean, inverse = torch.native_layer_norm(input, shape, weight, bias, eps)

    def normalized(run: slice) -> Tensor:
        return (input.detach()[run].float() - mean[run]) * inverse[run]

    once = kept(keeper, input, normalized, codes)
    averaged = kept(keeper, input, normalized, fewer)
    return _LayerNorm.apply(
        input, weight, bias, Known(output), Known(inverse), once, averaged
    )


class _LayerNorm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., width)
        weight: Tensor | None,  # (width,)
        bias: Tensor | None,
        output: Known,
        inverse: Known,  # of deviations, (..., 1)
        once: Source,  # of normalised x
        averaged: Source,  # the same, with noise of its own
    ) -> Tensor:
        ctx.inverse, ctx.once, ctx.averaged = inverse.tensor, once, averaged
        ctx.save_for_backward(weight)
        return output.tensor

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        _, has_weight, has_bias = ctx.needs_input_grad[:3]
        width = gradient.shape[-1]
        result = torch.empty_like(gradient)
        total = torch.zeros(width, dtype=torch.float32, device=gradient.device)
        for run in runs_of(gradient.shape, gradient.device):
            part = gradient[run].float()
            normalized = ctx.once.rows(run).float()
            if has_weight:
                total += (part * normalized).view(-1, width).sum(dim=0)
            if weight is not None:
                part = part * weight
            slope = (part * ctx.averaged.rows(run)).mean(dim=-1, keepdim=True)
            part = part - part.mean(dim=-1, keepdim=True) - normalized * slope
            result[run] = part * ctx.inverse[run]
        of_weight = total.to(gradient.dtype) if has_weight else None
        of_bias = gradient.reshape(-1, width).sum(dim=0) if has_bias else None
        return result, of_weight, of_bias, None, None, None, None


_LOG = (torch.log_softmax, Tensor.log_softmax, functional.log_softmax)
_SOFTMAX = (torch.softmax, Tensor.softmax, functional.softmax)
RULES: dict[Any, Any] = {
    functional.layer_norm: layer_norm,
    **dict.fromkeys((*_SOFTMAX, *_LOG), softmax),
}
