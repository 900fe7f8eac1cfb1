"""PReLU, which asks for signs, and for values where the slope is trained.

With y = x where x > 0 and y = s x elsewhere,

    grad x = grad y (1 or s),    grad s = sum of (grad y) x over x <= 0.

The sign decides and is kept exactly, as one bit; what is multiplied is linear in x, so
that codes are right in the mean. Where s is frozen nobody asks for x.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pipeline_src.compression.config import Codes
from pipeline_src.compression.keeper import Keeper
from pipeline_src.compression.sources import Bits, Source, runs_of
from pipeline_src.compression.values import Known
from pipeline_src.quant.first_order import first_order

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def prelu(keeper: Keeper, func: Any, input: Tensor, weight: Tensor) -> Tensor:
    """Rule for PReLU; weight holds one slope, or one for each channel."""
    if (
        not isinstance(keeper.choice(), Codes)
        or not (input.requires_grad or weight.requires_grad)
        or input.layout != torch.strided
        or input.ndim < 2
        or input.dtype not in _FLOATS
        or input.dtype != weight.dtype
        or input.numel() < keeper.config.min_numel
        or keeper.residents.name(input) is not None  # there anyway
        or torch.is_autocast_enabled(input.device.type)
    ):
        return func(input, weight)
    with torch.no_grad():
        output = func(input, weight)
    source = None
    if weight.requires_grad:
        # A slope with a past hands the noise on, to where x may be read again.
        of = keeper.source if weight.is_leaf else keeper.source_of_its_own
        source = of(input)
    bits = Bits.of(input > 0)
    result: Tensor = _PRelu.apply(input, weight, Known(output), bits, source)
    return result


class _PRelu(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (num_rows, num_channels, ...)
        weight: Tensor,  # (1,), () or (num_channels,)
        output: Known,
        positive: Bits,  # where x > 0
        source: Source | None,  # of x; None where the slope is frozen
    ) -> Tensor:
        ctx.positive, ctx.source = positive, source
        ctx.save_for_backward(weight)
        return output.tensor

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        positive, source = ctx.positive, ctx.source
        of_x = torch.empty_like(gradient) if ctx.needs_input_grad[0] else None
        per_channel = (1, -1, *(1,) * (gradient.ndim - 2))
        slope = weight.view(per_channel)
        total = torch.zeros(slope.shape, dtype=torch.float32, device=gradient.device)
        for run in runs_of(positive.shape, positive.device):
            passed, part = positive.rows(run), gradient[run]
            if of_x is not None:
                of_x[run] = torch.where(passed, part, part * slope)
            if source is not None:
                terms = part.float() * source.rows(run)
                total += terms.masked_fill_(passed, 0).sum_to_size(slope.shape)
        of_slope = None if source is None else total.view_as(weight).to(weight.dtype)
        return of_x, of_slope, None, None, None


RULES: dict[Any, Any] = dict.fromkeys((torch.prelu, Tensor.prelu), prelu)
