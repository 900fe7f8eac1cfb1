"""Dropout, whose noise is PyTorch's own and is kept as one bit per value."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from pipeline_src.compression.config import Keep
from pipeline_src.compression.keeper import Keeper
from pipeline_src.compression.sources import Bits, Dropped, Precision, Source, runs_of
from pipeline_src.compression.values import Known, Value
from pipeline_src.quant.first_order import first_order

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def dropout(
    keeper: Keeper,
    func: Any,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor:
    """Rule for functional.dropout."""
    if (
        not training
        or not 0.0 < p < 1.0
        or inplace
        or not input.requires_grad
        or input.dtype not in _FLOATS
        or input.ndim == 0
        or input.numel() < keeper.config.min_numel
        or isinstance(keeper.choice(), Keep)
    ):
        return func(input, p, training, inplace)
    before = keeper.ledger.known(input)
    output, bits, factor = _drop(input.detach(), p)
    output = _Dropout.apply(input, Known(output), bits, factor)
    if before is not None and not before.is_open:
        keeper.ledger.set(output, _DroppedValue(before, bits, factor))
    return output


def _drop(input: Tensor, p: float) -> tuple[Tensor, Bits, float]:
    """PyTorch's values, bit for bit, and its mask."""
    if input.device.type == "cuda":
        output, mask = torch.native_dropout(input, p, True)
        return output, Bits.of(mask), 1.0 / (1.0 - p)
    noise = torch.empty_like(input).bernoulli_(1 - p)
    bits = Bits.of(noise > 0)
    factor = float(torch.ones((), dtype=input.dtype).div_(1 - p))
    return noise.div_(1 - p).mul_(input), bits, factor


class _DroppedValue(Value):
    """Dropout's output; its source is made when the input's is there."""

    def __init__(self, of: Value, bits: Bits, factor: float) -> None:
        super().__init__()
        self._of, self._bits, self._factor = of, bits, factor

    @property
    def is_open(self) -> bool:
        """See Value."""
        return False

    @property
    def precision(self) -> Precision:
        """See Value."""
        return self._of.precision

    def settled(self) -> Source:
        """See Value."""
        if self.source is None:
            of, bits = self._of.settled(), self._bits
            self.source = Dropped(
                bits.shape, of.dtype, of.device, of, bits, self._factor
            )
        return self.source


class _Dropout(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, output: Known, bits: Bits, factor: float
    ) -> Tensor:
        ctx.bits, ctx.factor = bits, factor
        return output.tensor

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        bits, factor = ctx.bits, ctx.factor
        result = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        for run in runs_of(bits.shape, bits.device):
            result[run] = bits.masked(gradient[run], run, factor)
        return result, None, None, None


RULES: dict[Any, Any] = {functional.dropout: dropout}
