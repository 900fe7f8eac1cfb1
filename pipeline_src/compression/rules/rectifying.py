"""BatchNorm, ReLU, and the two in a row.

What BatchNorm keeps, its input, and what ReLU keeps, a sign, come from one code per
value, as does the input of the layer that follows (quant/rectified.py). So a ReLU that
follows a BatchNorm takes the gradient past it: its node leads to BatchNorm's input, and
BatchNorm's own node is left to those who use its output otherwise.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from pipeline_src.compression.config import Codes
from pipeline_src.compression.keeper import Keeper
from pipeline_src.compression.sources import Normalized, Rectified
from pipeline_src.compression.values import Value
from pipeline_src.quant.first_order import first_order
from pipeline_src.quant.fusion import fusion_pays
from pipeline_src.quant.rectified import (
    Normalization,
    RectifiedCoder,
    RectifiedCodes,
    RectifiedSetting,
    encode_beside,
)

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class _Normalized:
    """How a BatchNorm's output was made."""

    of: Value  # its input, which waits
    normalization: Normalization
    weight: Tensor | None  # parameters, where there are any
    bias: Tensor | None


def batch_norm(
    keeper: Keeper,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Rule for functional.batch_norm: what it calls, with statistics at hand."""
    arguments = running_mean, running_var, weight, bias, training, momentum, eps
    choice = keeper.choice()
    if (
        not training
        or not isinstance(choice, Codes)
        or choice.bits == 32
        or not input.requires_grad
        or input.ndim != 2
        or input.dtype not in _FLOATS
        or input.numel() < keeper.config.min_numel
        or torch.is_autocast_enabled(input.device.type)
    ):
        return func(input, *arguments)
    if len(input) < 2:
        return func(input, *arguments)  # which refuses it
    value = keeper.wait(
        input,
        lambda: value.settle(keeper.coded(_tensor(value), choice)),
    )
    output, mean, inverse_std, _, _ = torch._batch_norm_impl_index(
        input,
        weight,
        bias,
        running_mean,
        running_var,
        training,
        momentum,
        eps,
        torch.backends.cudnn.enabled,
    )
    if value.waiting is not None:
        width = input.shape[1]
        ones = mean.new_ones(width) if weight is None else weight.detach().float()
        zeros = mean.new_zeros(width) if bias is None else bias.detach().float()
        normalization = Normalization(mean, inverse_std, ones, zeros)
        made_by = _Normalized(value, normalization, weight, bias)
        keeper.ledger.of(output).made_by = made_by
    return output


def _tensor(value: Value) -> Tensor:
    assert value.waiting is not None, "settled once"
    return value.waiting


def relu(keeper: Keeper, func: Any, input: Tensor, inplace: bool = False) -> Tensor:
    """Rule for ReLU in all its names."""
    choice = keeper.choice()
    is_inplace = inplace or func in _IN_PLACE
    if (
        not isinstance(choice, Codes)
        or choice.bits == 32
        or not input.requires_grad
        or input.ndim < 2
        or input.dtype not in _FLOATS
        or input.numel() < keeper.config.min_numel
        or not input.is_contiguous()
    ):
        return func(input, inplace) if inplace else func(input)
    known = keeper.ledger.known(input)
    made_by = None if known is None else known.made_by
    coder = RectifiedCoder(choice.bits, choice.rows_per_block)
    if isinstance(made_by, _Normalized) and made_by.of.waiting is not None:
        y = made_by.of.waiting
        output = _NormalizedRelu.apply(
            input.detach() if not is_inplace else input,
            y,
            made_by.weight,
            made_by.bias,
            made_by.normalization,
            coder,
            keeper.seed(input.device),
            is_inplace,
        )
        codes = output.grad_fn.codes
        made_by.of.settle(Normalized(y.shape, y.dtype, y.device, codes))
    else:
        output = _Relu.apply(input, coder, keeper.seed(input.device), is_inplace)
        codes = output.grad_fn.codes
    keeper.ledger.of(output).settle(
        Rectified(output.shape, output.dtype, output.device, codes)
    )
    return output


def _encode(
    y: Tensor,
    output: Tensor,
    normalization: Normalization | None,
    coder: RectifiedCoder,
    seed: Tensor,
) -> RectifiedCodes:
    """Codes of (rows, the rest)."""
    y = y.reshape(len(y), -1).float()
    if normalization is None:
        width = y.shape[1]
        zeros, ones = y.new_zeros(width), y.new_ones(width)
        normalization = Normalization(zeros, ones, ones, zeros)
    fused = fusion_pays(y.numel(), y.device, "auto")
    no_dropout = torch.zeros((), device=y.device)
    setting = RectifiedSetting(coder, normalization, no_dropout, None, fused)
    result = output.reshape(len(y), -1).float()
    with torch.autocast(y.device.type, enabled=False):
        return encode_beside(y, result, seed, setting)


def _padded(gradient: Tensor, codes: RectifiedCodes) -> Tensor:
    """A copy to be overwritten, of whole blocks of rows."""
    flat = gradient.reshape(len(gradient), -1)
    blocks, _, _, width = codes.shape
    rows = blocks * codes.setting.coder.rows_per_block
    padded = torch.empty((rows, width), dtype=torch.float32, device=flat.device)
    padded[: len(flat)] = flat
    padded[len(flat) :] = 0
    return padded


class _NormalizedRelu(Function):
    """ReLU of BatchNorm, with a gradient to BatchNorm's input and parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        normalized: Tensor,  # BatchNorm's output, (num_rows, num_features)
        y: Tensor,  # its input
        weight: Tensor | None,
        bias: Tensor | None,
        normalization: Normalization,
        coder: RectifiedCoder,
        seed: Tensor,
        in_place: bool,
    ) -> Tensor:
        if in_place:
            ctx.mark_dirty(normalized)
            output = normalized.relu_()
        else:
            output = normalized.relu()
        ctx.codes = _encode(y, output, normalization, coder, seed)
        ctx.dtype = y.dtype
        return output

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        codes, num_rows = ctx.codes, len(gradient)
        of_y = _padded(gradient, codes)
        sums = codes.gradient_sums(of_y)
        share = torch.full((), 1.0 / num_rows, device=of_y.device)
        codes.backpropagate(of_y, sums, share)
        _, has_y, has_weight, has_bias = ctx.needs_input_grad[:4]
        return (
            None,
            of_y[:num_rows].to(ctx.dtype) if has_y else None,
            sums[1] if has_weight else None,
            sums[0] if has_bias else None,
            *(None,) * 4,
        )


class _Relu(Function):
    """ReLU of anything."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, coder: RectifiedCoder, seed: Tensor, in_place: bool
    ) -> Tensor:
        if in_place:
            ctx.mark_dirty(x)
            output = x.relu_()
        else:
            output = x.relu()
        ctx.codes = _encode(output, output, None, coder, seed)
        return output

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        passed = _padded(gradient, ctx.codes)
        nothing = passed.new_zeros((2, passed.shape[1]))
        no_share = torch.zeros((), device=passed.device)
        ctx.codes.backpropagate(passed, nothing, no_share)
        of_x = passed[: len(gradient)].view(gradient.shape).to(gradient.dtype)
        return of_x, None, None, None


_IN_PLACE = (torch.relu_, Tensor.relu_)
RULES: dict[Any, Any] = {
    functional.batch_norm: batch_norm,
    **dict.fromkeys((functional.relu, torch.relu, Tensor.relu, *_IN_PLACE), relu),
}
