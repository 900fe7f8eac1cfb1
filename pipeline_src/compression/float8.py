"""Floats of eight bits, rounded at random: for values of very different sizes.

Evenly spaced codes err by a share of the largest value of a block. A derivative near a
pole, such as 1 / x, has a few large values and many small ones, which such codes would
drown. A float errs by a share of itself: E4M3 (Micikevicius et al. 2022) has three bits
of mantissa, so that neighbours are at most an eighth of their size apart. Blocks share
a power of two, which brings their largest value near the top of the range; fourteen
octaves below it spacing becomes even, down to 0.

A value becomes one of its two neighbours, at random and right in the mean, with a
variance of at most (1 / 16)**2 of its square. What is not finite becomes NaN.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline_src.compression.sources import Precision, Source
from pipeline_src.quant.noise import row_keys, uniform_pair

BLOCK = 256  # values that share a power of two
_MANTISSA = 3
_TOP = 7  # exponent that the largest value of a block comes to; E4M3 ends at 448
_LEAST = -6  # exponent below which spacing is even


@dataclass(frozen=True, eq=False)
class Float8(Source):
    """A tensor's values as E4M3 floats."""

    floats: Tensor  # (num_blocks, BLOCK) float8_e4m3fn
    scales: Tensor  # (num_blocks, 1) float32, powers of two

    @property
    def precision(self) -> Precision:
        """See Source."""
        return Precision.COARSE

    @classmethod
    def of(cls, tensor: Tensor, seed: Tensor) -> "Float8":
        """Round; tensor is a single run, seed is () int32."""
        flat = tensor.detach().float().reshape(-1)
        blocks = functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
        finite = blocks.isfinite()
        largest = blocks.masked_fill(~finite, 0).abs().amax(dim=1, keepdim=True)
        exponent = _exponent(largest).clamp(min=-110)  # its inverse is a float, too
        scaled = blocks * _power(_TOP - exponent)
        spacing = _power(_exponent(scaled).clamp(_LEAST, _TOP) - _MANTISSA)
        columns = torch.arange(BLOCK // 2, dtype=torch.int32, device=tensor.device)
        keys = row_keys(seed, len(blocks))[:, None]
        noise = torch.cat(uniform_pair(keys, columns), dim=1)
        rounded = (scaled / spacing + noise).floor_() * spacing
        rounded.masked_fill_(~finite, torch.nan)
        return cls(
            tensor.shape,
            tensor.dtype,
            tensor.device,
            rounded.to(torch.float8_e4m3fn),
            _power(exponent - _TOP),
        )

    def rows(self, run: slice) -> Tensor:
        """See Source."""
        values = self.floats.float().mul_(self.scales).view(-1)
        values = values[: self.shape.numel()].view(self.shape)
        return (values[run] if values.ndim else values).to(self.dtype)

    def parts(self) -> Iterator[Tensor]:
        """See Source."""
        yield from (self.floats, self.scales)


def _exponent(values: Tensor) -> Tensor:
    """Of float32, int32: 2**exponent is the largest power of two that fits in."""
    return ((values.view(torch.int32) >> 23) & 0xFF) - 127


def _power(exponent: Tensor) -> Tensor:
    """2**exponent as float32, from -126 to 127."""
    return ((exponent + 127) << 23).view(torch.float32)
