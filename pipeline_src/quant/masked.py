"""Normalised activations in codes of any width, with ReLU's mask beside them.

What quant/rectified.py replaces: even or solved edges across the whole block, so that
a code does not tell the sign and the mask takes a bit of its own. It is kept for two
uses: to measure what codes that know their side bring, and, with 32 bits, as the exact
reference that every estimate is compared with. Plain operations; nothing is fused.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_src.quant.bitmask import mask_gradient, pack_mask
from pipeline_src.quant.compressor import CompressedActivation, Compressor
from pipeline_src.quant.noise import mix, row_keys, uniform_pair
from pipeline_src.quant.rectified import Normalization


def survives(
    seed: Tensor,  # () int32
    first_row: int,
    shape: torch.Size,  # (num_rows, num_features)
    dropout: float,
) -> Tensor:
    """Dropout's mask for a run of rows, the one that kernels draw."""
    keys = row_keys(seed, shape[0], first_row)[:, None]
    columns = torch.arange(shape[1], dtype=torch.int32, device=seed.device)
    return uniform_pair(keys, columns)[1] >= dropout


@dataclass(frozen=True, eq=False)
class MaskedCodes:
    """The same interface as RectifiedCodes."""

    values: CompressedActivation  # of n
    mask: Tensor  # packed bits of u > 0
    seed: Tensor  # () int32
    first_row: int
    normalization: Normalization
    dropout: float

    @property
    def is_finite(self) -> Tensor:
        """() bool on the device: False where the run held NaN or infinity."""
        return self.values.is_finite

    def gradient_sums(self, gradient: Tensor) -> Tensor:
        """See RectifiedCodes."""
        passed = self._pass(gradient)
        product = passed * self.values.decompress()
        return torch.stack([passed.sum(dim=0), product.sum(dim=0)])

    def backpropagate(self, gradient: Tensor, sums: Tensor, share: Tensor) -> None:
        """As RectifiedCodes, but for the variance, of which nothing is known."""
        mean_gradient, mean_product = sums * share
        centred = self._pass(gradient) - mean_gradient
        centred -= self.values.decompress() * mean_product
        norm = self.normalization
        torch.mul(centred, norm.weight * norm.inverse_std, out=gradient)

    def output(self) -> Tensor:
        """See RectifiedCodes."""
        norm = self.normalization
        return self._pass(self.values.decompress() * norm.weight + norm.bias)

    def _pass(self, gradient: Tensor) -> Tensor:
        """Through Dropout and ReLU."""
        passed = mask_gradient(gradient, self.mask, compile="false")
        if self.dropout:
            kept = survives(self.seed, self.first_row, gradient.shape, self.dropout)
            passed *= kept / (1.0 - self.dropout)
        return passed


def encode_masked(
    y: Tensor,  # (num_rows, num_features) float32; overwritten with h
    seed: Tensor,  # () int32
    first_row: int,
    normalization: Normalization,
    dropout: float,  # 0 if not dropped here
    compressor: Compressor,
) -> MaskedCodes:
    """Overwrite a run of rows with their h and keep n and the mask apart."""
    normalized = (y - normalization.mean) * normalization.inverse_std
    affine = normalized * normalization.weight + normalization.bias
    mask = ~(affine <= 0)  # a NaN goes on, to be seen
    kept = mask
    if dropout:
        kept = mask & survives(seed, first_row, y.shape, dropout)
    y.copy_(torch.where(kept, affine * (1.0 / (1.0 - dropout)), 0.0))
    # Mixed, so that rounding does not share its noise with Dropout.
    values = compressor.compress(normalized, mix(seed + first_row))
    packed = pack_mask(mask, compile="false")
    return MaskedCodes(values, packed, seed, first_row, normalization, dropout)
