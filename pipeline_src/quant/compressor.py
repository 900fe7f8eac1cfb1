"""The composition: project, quantise, pack; and back.

A Compressor is the recipe for one activation and never changes; a CompressedActivation
is what is kept for backward, with everything needed to read it. Backward consults
nothing else, so two layers may differ and a changed setting cannot break a gradient.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline_src.quant.blockwise import (
    PACKABLE_BITS,
    check_blocks,
    check_boundaries,
    compress_blocks,
    decompress_blocks,
)
from pipeline_src.quant.dtypes import as_float32, check_seed
from pipeline_src.quant.projection import count_projected, project, unproject


@dataclass(frozen=True, eq=False)
class Compressor:
    """Recipe for one activation of shape (num_nodes, num_features).

    Raises:
        ValueError: if bits is not 1, 2, 4, 8 or 32, block_size is not positive, or
            boundaries do not increase from 0 to 2**bits - 1.
    """

    bits: int  # of a code; 32 keeps float32 values
    block_size: int = 1  # projected values that share a zero point and a scale
    projection_ratio: int = 1  # num_features / num_projected
    boundaries: Tensor | None = None  # (2**bits,) float32, bin units; None = even
    compile: str = "auto"

    def __post_init__(self) -> None:
        count_projected(1, self.projection_ratio)
        if self.bits == 32:
            return
        if self.bits not in PACKABLE_BITS:
            raise ValueError(
                f"bits must be one of {PACKABLE_BITS}, or 32 to keep float32 "
                f"values, got {self.bits}"
            )
        check_blocks(self.bits, self.block_size)
        if self.boundaries is not None:
            check_boundaries(self.boundaries, 2**self.bits - 1)

    def to(self, device: torch.device) -> "Compressor":
        """The same recipe with its boundaries on a device."""
        if self.boundaries is None:
            return self
        return replace(self, boundaries=self.boundaries.to(device))

    def compress(
        self,
        x: Tensor,  # (num_nodes, num_features) float32 or half
        seed: Tensor,  # () int32: of the projection and of the rounding
    ) -> "CompressedActivation":
        """Keep x in few bits; the mean of decompress(...) over seeds is x.

        Raises:
            TypeError: if x or the seed is of another type.
            ValueError: if x is no matrix.
        """
        if x.ndim != 2:
            raise ValueError(
                f"x must be (num_nodes, num_features), got shape {tuple(x.shape)}"
            )
        check_seed(seed)
        x = as_float32(x)
        num_features = x.shape[1]
        if self.projection_ratio > 1:
            width = count_projected(num_features, self.projection_ratio)
            x = project(x, seed, width, self.compile)
        if self.bits == 32:
            return CompressedActivation(self, num_features, x.shape, (x, seed))
        kept = compress_blocks(
            x, seed, self.bits, self.block_size, self.boundaries, self.compile
        )
        return CompressedActivation(self, num_features, x.shape, (*kept, seed))


@dataclass(frozen=True, eq=False)
class CompressedActivation:
    """What is kept: packed codes, zero points, scales, and the seed."""

    compressor: Compressor
    num_features: int
    shape: torch.Size  # (num_nodes, num_projected)
    # (values, seed) with 32 bits, else (packed, zero_point, scale, seed): one tuple,
    # because that is what autograd saves and hands back.
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors kept, metadata and padding counted."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def is_finite(self) -> Tensor:
        """() bool on the device, False where decoding gives NaN or infinity.

        So it does where the activation held either, and where a block's range, rounded
        outwards, is more than float32 can hold.
        """
        if self.compressor.bits == 32:
            return torch.isfinite(self.tensors[0]).all()
        _, zero_point, scale, _ = self.tensors
        reach = scale.to(torch.float32) * (2**self.compressor.bits - 1)
        # One operation where isfinite and all are five; a NaN's comparison is false.
        last = zero_point.to(torch.float32) + reach
        if last.numel() == 0:  # nothing has no largest
            return torch.isfinite(last).all()
        return torch.linalg.vector_norm(last, torch.inf) < torch.inf

    def read(self, tensors: tuple[Tensor, ...]) -> "CompressedActivation":
        """The same activation around tensors that autograd has handed back."""
        return replace(self, tensors=tensors)

    def without_tensors(self) -> "CompressedActivation":
        """The description alone, to keep beside tensors that autograd holds."""
        return replace(self, tensors=())

    def projected(self) -> Tensor:
        """Dequantised values before the projection is undone, float32, `shape`."""
        if self.compressor.bits == 32:
            return self.tensors[0]
        packed, zero_point, scale, _ = self.tensors
        return decompress_blocks(
            packed,
            zero_point,
            scale,
            self.shape,
            self.compressor.bits,
            self.compressor.boundaries,
            self.compressor.compile,
        )

    def decompress(self) -> Tensor:
        """An unbiased estimate of the activation, (num_nodes, num_features)."""
        values = self.projected()
        if self.compressor.projection_ratio > 1:
            values = self._unproject(values)
        return values

    def weight_gradient(
        self,
        gradient: Tensor,  # (num_nodes, num_outputs) float32 or half
    ) -> Tensor:
        """gradientᵀ · activation, (num_outputs, num_features), formed projected."""
        product = as_float32(gradient, "gradient").T @ self.projected()
        if self.compressor.projection_ratio > 1:
            product = self._unproject(product)
        return product

    def _unproject(self, values: Tensor) -> Tensor:
        seed, compile = self.tensors[-1], self.compressor.compile
        return unproject(values, seed, self.num_features, compile)
