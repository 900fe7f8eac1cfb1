"""Codes of normalised activations from which the ReLU mask is read exactly.

Between two convolutions stand BatchNorm, ReLU and Dropout,

    n = (y - mean) / std,   u = weight n + bias,   h = u m / (1 - p) if u > 0, else 0.

Backward needs n (BatchNorm), the signs of u (ReLU), the mask m (Dropout) and h, the
input of the next convolution. All four come from one code per value:

* The highest bit of a code says on which side of the threshold t = -bias / weight the
  value lies, so the sign of u is exact and costs nothing extra.
* The other bits round n at random, without bias, between even edges on its own side:
  from the block's minimum to t, or from t to its maximum. Rounding never crosses t.
* m is noise of (seed, row, feature), drawn again wherever it is needed.
* h is a function of n, u > 0 and m. Since the latter two are exact, the estimate of h
  is as unbiased as that of n.

The threshold belongs to a feature and is known from the layer's parameters; minimum
and maximum belong to a block of whole rows and are kept in bfloat16, rounded outwards.
Where weight is 0 all values of a feature share a sign, and the threshold moves to the
block's end so that both edges remain useful.

A byte holds the codes of 8 / bits consecutive rows at one feature, so all kernels run
along features, which are contiguous in activations and in codes alike. They take runs
of blocks, and results overwrite their input run by run: a compiler left to itself
would hold a second tensor of the full size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline_src.quant.blockwise import round_down
from pipeline_src.quant.fusion import fuse, fusion_pays
from pipeline_src.quant.noise import row_keys, uniform_pair

RECTIFIED_BITS = (2, 4, 8)  # one for the side, at least one to round


@dataclass(frozen=True, eq=False)
class Normalization:
    """What maps y to u; each tensor (num_features,) float32."""

    mean: Tensor
    inverse_std: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def threshold(self) -> Tensor:
        """Normalised value at which u changes sign; infinite where weight is 0."""
        always = torch.where(self.bias > 0, -torch.inf, torch.inf)
        return torch.where(self.weight == 0, always, -self.bias / self.weight)

    def tensors(self) -> tuple[Tensor, ...]:
        """In the order in which the kernels take them."""
        return (
            self.mean,
            self.inverse_std,
            self.weight,
            self.bias,
            self.threshold,
        )


RUN_VALUES = 2**21  # that a kernel takes at once on a CPU: 8 MiB, a share of its cache
RUN_VALUES_ON_GPU = 2**23  # 32 MiB: fills a GPU, and little beside the activations


@dataclass(frozen=True, eq=False)
class RectifiedCodes:
    """What is kept of BatchNorm, ReLU and Dropout together."""

    packed: Tensor  # (num_blocks, bytes along rows, num_features) uint8
    low: Tensor  # (num_blocks,) bfloat16, normalised units
    high: Tensor  # (num_blocks,) bfloat16, normalised units
    seed: Tensor  # () int32: of rounding and Dropout
    normalization: Normalization
    dropout: float
    bits: int
    compile: str

    @property
    def num_rows(self) -> int:
        """Rows of the blocks, padding counted."""
        return self._shape[:3].numel()

    def _runs(self) -> list[tuple[int, int]]:
        """Runs of blocks that the kernels take, as (first, last + 1)."""
        return _runs(self.packed.shape[0], self._shape[1:].numel(), self.low.device)

    def gradient_sums(
        self,
        gradient: Tensor,  # (num_rows, num_features): of h; padding rows are 0
    ) -> tuple[Tensor, Tensor]:
        """Sums over rows of the gradient of u, and of that times n.

        They are the gradients of BatchNorm's bias and weight, (num_features,) each.
        """
        blocks, keys = gradient.view(self._shape), _keys(self.seed, self._shape)
        kernel = _gradient_sums_fused if self._fused else _gradient_sums
        sums = torch.zeros(2, self._shape[3], device=gradient.device)
        for run in self._runs():
            part = blocks[run[0] : run[1]]
            sums += kernel(part, *self._arguments(run, keys)).sum(dim=1)
        return sums[0], sums[1]

    def backpropagate(
        self,
        gradient: Tensor,  # (num_rows, num_features): of h; overwritten with that of y
        mean_gradient: Tensor,  # (num_features,) of u, over nodes; 0 without BatchNorm
        mean_product: Tensor,  # (num_features,) of that times n; 0 without BatchNorm
    ) -> None:
        """Turn the gradient of h into the gradient of y, in place."""
        blocks, keys = gradient.view(self._shape), _keys(self.seed, self._shape)
        kernel: Callable[..., Tensor] = _backpropagate
        if self._fused:
            kernel = _backpropagate_fused
        for run in self._runs():
            part = blocks[run[0] : run[1]]
            arguments = self._arguments(run, keys)
            part.copy_(kernel(part, *arguments, mean_gradient, mean_product))

    def outputs(self) -> Iterator[tuple[slice, Tensor]]:
        """Estimates of h, run by run: which rows, and (their number, num_features)."""
        keys = _keys(self.seed, self._shape)
        kernel = _output_fused if self._fused else _output
        rows_per_block = self._shape[1] * self._shape[2]
        for run in self._runs():
            rows = slice(run[0] * rows_per_block, run[1] * rows_per_block)
            h = kernel(*self._arguments(run, keys))
            yield rows, h.view(-1, self._shape[3])

    @property
    def _shape(self) -> torch.Size:
        blocks, num_bytes, width = self.packed.shape
        return torch.Size((blocks, num_bytes, 8 // self.bits, width))

    @property
    def _fused(self) -> bool:
        return fusion_pays(self._shape.numel(), self.low.device, self.compile)

    def _arguments(self, run: tuple[int, int], keys: Tensor) -> tuple[Any, ...]:
        part = slice(*run)
        return (
            self.packed[part],
            self.low[part],
            self.high[part],
            keys[part],
            _scalar(self.dropout, self.low),
            self.normalization.tensors(),
            self.bits,
        )


def encode(
    y: Tensor,  # (num_rows, num_features) float32; overwritten with h
    normalization: Normalization,
    seed: Tensor,  # () int32
    dropout: float,  # probability that a value is dropped
    bits: int,
    rows_per_block: int,
    compile: str,
) -> RectifiedCodes:
    """Overwrite y with h and return the codes of its normalised values.

    num_rows must be a multiple of rows_per_block, and that of 8 / bits.

    Raises:
        ValueError: if bits or rows_per_block cannot be packed.
    """
    num_rows, width = y.shape
    shape = block_shape(num_rows, width, bits, rows_per_block)
    blocks = y.view(shape)
    fused = fusion_pays(y.numel(), y.device, compile)
    kernel = _encode_fused if fused else _encode
    keys = _keys(seed, shape)
    packed = y.new_empty((*shape[:2], width), dtype=torch.uint8)
    ends = y.new_empty((2, shape[0]), dtype=torch.bfloat16)
    for first, last in _runs(shape[0], shape[1:].numel(), y.device):
        part = slice(first, last)
        packed[part], ends[0, part], ends[1, part], h = kernel(
            blocks[part],
            keys[part],
            _scalar(dropout, y),
            normalization.tensors(),
            bits,
        )
        blocks[part].copy_(h)
    return RectifiedCodes(
        packed, ends[0], ends[1], seed, normalization, dropout, bits, compile
    )


def block_shape(
    num_rows: int, width: int, bits: int, rows_per_block: int
) -> torch.Size:
    """Shape (blocks, bytes along rows, codes of a byte, features) of an activation.

    Raises:
        ValueError: if bits or rows_per_block cannot be packed.
    """
    if bits not in RECTIFIED_BITS:
        raise ValueError(
            f"bits must be one of {RECTIFIED_BITS} (one tells the sign), got {bits}"
        )
    per_byte = 8 // bits
    if rows_per_block < 1 or rows_per_block % per_byte:
        raise ValueError(
            f"rows_per_block must be a multiple of {per_byte} at {bits} bits, because "
            f"a byte holds the codes of {per_byte} rows; got {rows_per_block}"
        )
    num_blocks, rest = divmod(num_rows, rows_per_block)
    assert rest == 0, "callers pad to whole blocks"
    return torch.Size((num_blocks, rows_per_block // per_byte, per_byte, width))


def _runs(
    num_blocks: int, values_per_block: int, device: torch.device
) -> list[tuple[int, int]]:
    """Runs of at least two blocks: a kernel for any size is compiled anew for 1."""
    values = RUN_VALUES_ON_GPU if device.type == "cuda" else RUN_VALUES
    step = max(2, values // values_per_block)
    starts = list(range(0, num_blocks, step))
    if len(starts) > 1 and num_blocks - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_blocks], strict=True))


def _keys(seed: Tensor, shape: torch.Size) -> Tensor:
    """Keys of the noise, one per row, (blocks, bytes, codes of a byte, 1)."""
    return row_keys(seed, shape[:3].numel()).view(*shape[:3], 1)


def _encode(
    y: Tensor,  # (blocks, bytes, codes of a byte, features)
    keys: Tensor,  # (blocks, bytes, codes of a byte, 1) int32
    dropout: Tensor,  # ()
    normalization: tuple[Tensor, ...],
    bits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, the two ends of each block, and h, shaped like y."""
    mean, inverse_std, weight, bias, threshold = normalization
    steps = 2 ** (bits - 1) - 1
    per_byte = 8 // bits
    columns = torch.arange(y.shape[3], dtype=torch.int32, device=y.device)
    smallest = largest = (y[:, :, 0] - mean) * inverse_std
    for j in range(1, per_byte):
        normalized = (y[:, :, j] - mean) * inverse_std
        smallest = torch.minimum(smallest, normalized)
        largest = torch.maximum(largest, normalized)
    low = round_down(smallest.amin(dim=(1, 2)))
    high = -round_down(-largest.amax(dim=(1, 2)))
    left_end, right_end = low[:, None, None], high[:, None, None]
    middle = torch.minimum(torch.maximum(threshold, left_end), right_end)
    scale = 1.0 / (1.0 - dropout)

    packed = torch.zeros((1, 1, 1), dtype=torch.int32, device=y.device)
    outputs = []
    for j in range(per_byte):
        normalized = (y[:, :, j] - mean) * inverse_std
        affine = normalized * weight + bias
        active = ~(affine <= 0)  # a NaN goes on, to be seen
        rounding, dropping = uniform_pair(keys[:, :, j], columns)
        above = active == (weight >= 0)
        left = torch.where(above, middle, left_end)
        right = torch.where(above, right_end, middle)
        width = right - left
        # A side of no width holds nothing but its edge.
        fraction = torch.where(width > 0, (normalized - left) / width, 0.0)
        code = torch.clamp((fraction * steps + rounding).to(torch.int32), 0, steps)
        code = code | (above.to(torch.int32) << (bits - 1))
        packed = packed | (code << (bits * j))
        kept = active & (dropping >= dropout)
        outputs.append(torch.where(kept, affine * scale, 0.0))
    ends = low.to(torch.bfloat16), high.to(torch.bfloat16)
    return packed.to(torch.uint8), *ends, torch.stack(outputs, dim=2)


def _decode(
    packed: Tensor,  # (blocks, bytes, features) uint8
    low: Tensor,  # (blocks,) bfloat16
    high: Tensor,
    keys: Tensor,  # (blocks, bytes, codes of a byte, 1) int32
    dropout: Tensor,  # ()
    normalization: tuple[Tensor, ...],
    bits: int,
) -> tuple[Tensor, Tensor]:
    """Estimate of n, and whether a value passed ReLU and Dropout; shaped like y."""
    _, _, weight, _, threshold = normalization
    steps = 2 ** (bits - 1) - 1
    shift = torch.arange(8 // bits, dtype=torch.int32, device=packed.device)
    words = packed.to(torch.int32)[:, :, None]
    code = (words >> (shift * bits)[:, None]) & (2**bits - 1)
    above = code > steps
    level = (code & steps).to(torch.float32) * (1.0 / steps)
    left_end = low.to(torch.float32)[:, None, None, None]
    right_end = high.to(torch.float32)[:, None, None, None]
    middle = torch.minimum(torch.maximum(threshold, left_end), right_end)
    left = torch.where(above, middle, left_end)
    right = torch.where(above, right_end, middle)
    columns = torch.arange(packed.shape[2], dtype=torch.int32, device=packed.device)
    _, dropping = uniform_pair(keys, columns)
    active = above == (weight >= 0)
    return left + (right - left) * level, active & (dropping >= dropout)


def _gradient_sums(
    gradient: Tensor,  # (blocks, bytes, codes of a byte, features)
    packed: Tensor,
    low: Tensor,
    high: Tensor,
    keys: Tensor,
    dropout: Tensor,
    normalization: tuple[Tensor, ...],
    bits: int,
) -> Tensor:
    """Sums of the gradient of u and of that times n, (2, blocks, features)."""
    stored = packed, low, high, keys, dropout, normalization, bits
    normalized, kept = _decode(*stored)
    passed = torch.where(kept, gradient * (1.0 / (1.0 - dropout)), 0.0)
    # Per block first: a sum over few rows runs along features in one pass.
    sums = passed.sum(dim=(1, 2)), (passed * normalized).sum(dim=(1, 2))
    return torch.stack(sums)


def _backpropagate(
    gradient: Tensor,  # (blocks, bytes, codes of a byte, features)
    packed: Tensor,
    low: Tensor,
    high: Tensor,
    keys: Tensor,
    dropout: Tensor,
    normalization: tuple[Tensor, ...],
    bits: int,
    mean_gradient: Tensor,  # (features,)
    mean_product: Tensor,  # (features,)
) -> Tensor:
    """Gradient of y from that of h."""
    stored = packed, low, high, keys, dropout, normalization, bits
    normalized, kept = _decode(*stored)
    _, inverse_std, weight, _, _ = normalization
    passed = torch.where(kept, gradient * (1.0 / (1.0 - dropout)), 0.0)
    centred = passed - mean_gradient - normalized * mean_product
    return centred * (weight * inverse_std)


def _output(
    packed: Tensor,
    low: Tensor,
    high: Tensor,
    keys: Tensor,
    dropout: Tensor,
    normalization: tuple[Tensor, ...],
    bits: int,
) -> Tensor:
    """Estimate of h, (blocks, bytes, codes of a byte, features)."""
    stored = packed, low, high, keys, dropout, normalization, bits
    normalized, kept = _decode(*stored)
    _, _, weight, bias, _ = normalization
    affine = normalized * weight + bias
    return torch.where(kept, affine * (1.0 / (1.0 - dropout)), 0.0)


def _scalar(value: float, like: Tensor) -> Tensor:
    """A 0-d tensor, so that one compilation serves every value."""
    return torch.full((), value, dtype=torch.float32, device=like.device)


_encode_fused = fuse(_encode)
_gradient_sums_fused = fuse(_gradient_sums)
_backpropagate_fused = fuse(_backpropagate)
_output_fused = fuse(_output)
