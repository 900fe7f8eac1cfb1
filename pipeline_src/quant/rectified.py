"""Codes of normalised activations from which the ReLU mask is read exactly.

Between two convolutions stand BatchNorm, ReLU and Dropout,

    n = (y - mean) / std,   u = weight n + bias,   h = u m / (1 - p) if u > 0, else 0.

Backward needs n (BatchNorm), the signs of u (ReLU), the mask m (Dropout) and h, the
input of the next convolution. All four come from one code per value:

* A code says on which side of ReLU's threshold t = -bias / weight the value lies, so
  the sign of u is exact and costs nothing extra.
* On its side, n is rounded at random, without bias, to one of a few edges between t
  and the block's minimum or maximum. Rounding never crosses t.
* m is noise of (seed, row, feature), drawn again wherever it is needed.
* h is a function of n, u > 0 and m. Since the latter two are exact, the estimate of h
  is as unbiased as that of n.

How many levels a side gets is not even. h needs n on the active side only, and its
rounding error is most of the gradient's; behind ReLU n enters the gradient through one
term of BatchNorm, multiplied by a mean over all nodes. So with two bits three of the
four codes are active and one says "inactive", which stands for the mean of that side
over all nodes, feature by feature: exact in the sum, and no longer random. With one bit
either side is given by its mean, and h is biased. From four bits on the sides share the
codes evenly and everything is unbiased.

The threshold belongs to a feature and is known from the layer's parameters; minimum
and maximum belong to a block of whole rows and are kept in bfloat16, rounded outwards.
A threshold beyond the block's end moves to that end, so that the edges remain useful.

A byte holds the codes of 8 / bits consecutive rows at one feature, so all kernels run
along features, which are contiguous in activations and in codes alike. They take a run
of blocks at a time and the caller lets results overwrite their input run by run: a
compiler left to itself would hold a second tensor of the full size.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline_src.quant.blockwise import (
    check_boundaries,
    even_position,
    look_up,
    round_down,
)
from pipeline_src.quant.fusion import fuse
from pipeline_src.quant.noise import row_keys, uniform_pair

# bits -> levels of the inactive and of the active side
LEVELS = {1: (1, 1), 2: (1, 3), 4: (8, 8), 8: (128, 128)}
RECTIFIED_BITS = tuple(LEVELS)


class Normalization(NamedTuple):
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


@dataclass(frozen=True, eq=False)
class RectifiedCoder:
    """Recipe for the codes of one layer.

    Raises:
        ValueError: if bits is not one of RECTIFIED_BITS, rows_per_block cannot be
            packed, or boundaries do not increase from 0 to the number of bins.
    """

    bits: int
    rows_per_block: int
    # Of one side, from the threshold outwards, (active levels,) float32 in bin units;
    # None = even.
    boundaries: Tensor | None = None

    def __post_init__(self) -> None:
        if self.bits not in LEVELS:
            raise ValueError(f"bits must be one of {RECTIFIED_BITS}, got {self.bits}")
        per_byte = 8 // self.bits
        if self.rows_per_block < 1 or self.rows_per_block % per_byte:
            raise ValueError(
                f"rows_per_block must be a multiple of {per_byte} at {self.bits} bits, "
                f"because a byte holds the codes of {per_byte} rows; got "
                f"{self.rows_per_block}"
            )
        if self.boundaries is not None:
            check_boundaries(self.boundaries, LEVELS[self.bits][1] - 1)

    @property
    def num_ends(self) -> int:
        """Values kept of each block: its two ends, or none where nothing is rounded."""
        return 2 if LEVELS[self.bits][1] > 1 else 0

    @property
    def needs_means(self) -> bool:
        """True where a side has one level, which stands for the mean of that side."""
        return LEVELS[self.bits][0] == 1

    def to(self, device: torch.device) -> "RectifiedCoder":
        """The same recipe with its boundaries on a device."""
        if self.boundaries is None:
            return self
        return replace(self, boundaries=self.boundaries.to(device))


class RectifiedSetting(NamedTuple):
    """How the runs of one layer are coded in one step."""

    coder: RectifiedCoder
    normalization: Normalization
    dropout: float  # probability that a value is dropped; 0 if not dropped here
    side_means: Tensor | None  # (2, num_features): inactive, active; if needed
    fused: bool  # run compiled kernels


class _Stored(NamedTuple):
    """A run of codes with all that reading them takes; what kernels get."""

    packed: Tensor  # (blocks, bytes along rows, features) uint8
    ends: Tensor  # (blocks, 2) float32, normalised units; (blocks, 0) with one bit
    keys: Tensor  # (blocks, bytes, codes of a byte, 1) int32, of the noise
    dropout: Tensor  # () float32
    normalization: Normalization
    threshold: Tensor  # (features,)
    boundaries: Tensor | None
    side_means: Tensor | None
    bits: int


@dataclass(frozen=True, eq=False)
class RectifiedCodes:
    """What is kept of BatchNorm, ReLU and Dropout for a run of rows."""

    packed: Tensor  # (num_blocks, bytes along rows, num_features) uint8
    ends: Tensor  # (num_blocks, 2) bfloat16: minimum and maximum of n; 1 bit has none
    seed: Tensor  # () int32: of rounding and Dropout
    first_row: int  # of the run, among all rows that share the seed
    setting: RectifiedSetting

    @property
    def is_finite(self) -> Tensor:
        """() bool on the device: False where the run held NaN or infinity."""
        means = self.setting.side_means
        finite = torch.isfinite(self.ends).all()
        return finite if means is None else finite & torch.isfinite(means).all()

    def gradient_sums(
        self,
        gradient: Tensor,  # (num_rows, num_features): of h; padding rows are 0
    ) -> Tensor:
        """Sums over rows of the gradient of u, and of that times n: (2, num_features).

        They are the gradients of BatchNorm's bias and weight.
        """
        kernel = _gradient_sums_fused if self.setting.fused else _gradient_sums
        return kernel(gradient.view(self.shape), self._stored()).sum(dim=1)

    def backpropagate(
        self,
        gradient: Tensor,  # (num_rows, num_features): of h; overwritten with that of y
        mean_gradient: Tensor,  # (num_features,) of u, over nodes; 0 without BatchNorm
        mean_product: Tensor,  # (num_features,) of that times n; 0 without BatchNorm
    ) -> None:
        """Turn the gradient of h into the gradient of y, in place."""
        kernel = _backpropagate_fused if self.setting.fused else _backpropagate
        blocks = gradient.view(self.shape)
        blocks.copy_(kernel(blocks, self._stored(), mean_gradient, mean_product))

    def output(self) -> Tensor:
        """Estimate of h, (num_rows, num_features)."""
        kernel = _output_fused if self.setting.fused else _output
        return kernel(self._stored()).view(-1, self.shape[3])

    @property
    def shape(self) -> torch.Size:
        """Blocks, bytes along rows, codes of a byte, features."""
        blocks, num_bytes, width = self.packed.shape
        return torch.Size((blocks, num_bytes, 8 // self.setting.coder.bits, width))

    def _stored(self) -> _Stored:
        setting = self.setting
        return _Stored(
            self.packed,
            # Widened outside the kernel, as in decompress_blocks.
            self.ends.to(torch.float32),
            _keys(self.seed, self.shape, self.first_row),
            _scalar(setting.dropout, self.packed),
            setting.normalization,
            setting.normalization.threshold,
            setting.coder.boundaries,
            setting.side_means,
            setting.coder.bits,
        )


def active_sums(
    y: Tensor,  # (num_rows, num_features), num_rows a multiple of `groups`
    normalization: Normalization,
    groups: int,
    fused: bool,
) -> Tensor:
    """Per feature, (3, num_features): count and sum of active n, and sum of all n."""
    kernel = _active_sums_fused if fused else _active_sums
    # Groups of neighbouring rows: few, so that little is written, and enough for
    # several threads, each of which runs along features.
    return kernel(y.view(groups, -1, y.shape[1]), normalization).sum(dim=1)


def encode(
    y: Tensor,  # (num_rows, num_features) float32; overwritten with h
    packed: Tensor,  # (num_blocks, bytes along rows, num_features) uint8, overwritten
    ends: Tensor,  # (num_blocks, num_ends) bfloat16, overwritten
    seed: Tensor,  # () int32
    first_row: int,
    setting: RectifiedSetting,
) -> RectifiedCodes:
    """Overwrite a run of rows with their h and return the codes of their n.

    num_rows must be a multiple of rows_per_block.
    """
    codes = RectifiedCodes(packed, ends, seed, first_row, setting)
    kernel = _encode_fused if setting.fused else _encode
    blocks = y.view(codes.shape)
    found, found_ends, h = kernel(
        blocks,
        _keys(seed, blocks.shape, first_row),
        _scalar(setting.dropout, y),
        setting.normalization,
        setting.normalization.threshold,
        setting.coder.boundaries,
        setting.coder.bits,
    )
    packed.copy_(found)
    if found_ends is not None:
        ends.copy_(found_ends)
    blocks.copy_(h)
    return codes


def _keys(seed: Tensor, shape: torch.Size, first_row: int) -> Tensor:
    """Keys of the noise, one per row, (blocks, bytes, codes of a byte, 1)."""
    return row_keys(seed, shape[:3].numel(), first_row).view(*shape[:3], 1)


def _active_sums(
    y: Tensor,  # (groups, rows, features)
    normalization: Normalization,
) -> Tensor:
    """Count and sum of active n, and sum of all n, (3, groups, features)."""
    mean, inverse_std, weight, bias = normalization
    normalized = (y - mean) * inverse_std
    # A product, not torch.where: choosing between constants is not vectorized.
    active = (normalized * weight + bias > 0).to(torch.float32)
    terms = active, normalized * active, normalized
    return torch.stack([term.sum(dim=1) for term in terms])


def _encode(
    y: Tensor,  # (blocks, bytes, codes of a byte, features)
    keys: Tensor,  # (blocks, bytes, codes of a byte, 1) int32
    dropout: Tensor,  # ()
    normalization: Normalization,
    threshold: Tensor,  # (features,)
    boundaries: Tensor | None,
    bits: int,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Codes, the two ends of each block, and h, shaped like y."""
    mean, inverse_std, weight, bias = normalization
    inactive_levels, active_levels = LEVELS[bits]
    steps = active_levels - 1
    per_byte = 8 // bits
    columns = torch.arange(y.shape[3], dtype=torch.int32, device=y.device)
    scale = 1.0 / (1.0 - dropout)
    ends = None
    if steps:
        smallest = largest = (y[:, :, 0] - mean) * inverse_std
        for j in range(1, per_byte):
            normalized = (y[:, :, j] - mean) * inverse_std
            smallest = torch.minimum(smallest, normalized)
            largest = torch.maximum(largest, normalized)
        low = round_down(smallest.amin(dim=(1, 2)))
        high = -round_down(-largest.amax(dim=(1, 2)))
        ends = torch.stack([low, high], dim=1).to(torch.bfloat16)
        left_end, right_end = low[:, None, None], high[:, None, None]
        middle = torch.minimum(torch.maximum(threshold, left_end), right_end)

    packed = torch.zeros((1, 1, 1), dtype=torch.int32, device=y.device)
    outputs = []
    for j in range(per_byte):
        normalized = (y[:, :, j] - mean) * inverse_std
        affine = normalized * weight + bias
        active = ~(affine <= 0)  # a NaN goes on, to be seen
        rounding, dropping = uniform_pair(keys[:, :, j], columns)
        code = active.to(torch.int32) * inactive_levels
        if steps:
            above = active == (weight >= 0)
            reach = torch.where(above, right_end, left_end) - middle
            # A side of no width holds nothing but its edge.
            position = torch.where(
                reach != 0, (normalized - middle) / reach * steps, 0.0
            )
            if boundaries is not None:
                position = even_position(position, boundaries, steps)
            level = torch.clamp((position + rounding).to(torch.int32), 0, steps)
            code = code + (level if inactive_levels > 1 else level * active)
        packed = packed | (code << (bits * j))
        kept = active & (dropping >= dropout)
        outputs.append(torch.where(kept, affine * scale, 0.0))
    return packed.to(torch.uint8), ends, torch.stack(outputs, dim=2)


def _decode(stored: _Stored) -> tuple[Tensor, Tensor]:
    """Estimate of n, and whether a value passed ReLU and Dropout; shaped like y."""
    bits, packed, weight = stored.bits, stored.packed, stored.normalization.weight
    inactive_levels, active_levels = LEVELS[bits]
    shift = torch.arange(8 // bits, dtype=torch.int32, device=packed.device)
    words = packed.to(torch.int32)[:, :, None]
    code = (words >> (shift * bits)[:, None]) & (2**bits - 1)
    active = code >= inactive_levels
    if active_levels > 1:
        left_end = stored.ends[:, 0, None, None, None]
        right_end = stored.ends[:, 1, None, None, None]
        middle = torch.minimum(torch.maximum(stored.threshold, left_end), right_end)
        above = active == (weight >= 0)
        reach = torch.where(above, right_end, left_end) - middle
        level = code - active.to(torch.int32) * inactive_levels
        position = look_up(stored.boundaries, level) * (1.0 / (active_levels - 1))
        normalized = middle + reach * position
    if stored.side_means is not None:
        of_active = normalized if active_levels > 1 else stored.side_means[1]
        normalized = torch.where(active, of_active, stored.side_means[0])
    columns = torch.arange(packed.shape[2], dtype=torch.int32, device=packed.device)
    _, dropping = uniform_pair(stored.keys, columns)
    return normalized, active & (dropping >= stored.dropout)


def _gradient_sums(
    gradient: Tensor,  # (blocks, bytes, codes of a byte, features)
    stored: _Stored,
) -> Tensor:
    """Sums of the gradient of u and of that times n, (2, blocks, features)."""
    normalized, kept = _decode(stored)
    passed = torch.where(kept, gradient * (1.0 / (1.0 - stored.dropout)), 0.0)
    # Per block first: a sum over few rows runs along features in one pass.
    sums = passed.sum(dim=(1, 2)), (passed * normalized).sum(dim=(1, 2))
    return torch.stack(sums)


def _backpropagate(
    gradient: Tensor,  # (blocks, bytes, codes of a byte, features)
    stored: _Stored,
    mean_gradient: Tensor,  # (features,)
    mean_product: Tensor,  # (features,)
) -> Tensor:
    """Gradient of y from that of h."""
    normalized, kept = _decode(stored)
    norm = stored.normalization
    passed = torch.where(kept, gradient * (1.0 / (1.0 - stored.dropout)), 0.0)
    centred = passed - mean_gradient - normalized * mean_product
    return centred * (norm.weight * norm.inverse_std)


def _output(stored: _Stored) -> Tensor:
    """Estimate of h, (blocks, bytes, codes of a byte, features)."""
    normalized, kept = _decode(stored)
    affine = normalized * stored.normalization.weight + stored.normalization.bias
    return torch.where(kept, affine * (1.0 / (1.0 - stored.dropout)), 0.0)


def _scalar(value: float, like: Tensor) -> Tensor:
    """A 0-d tensor, so that one compilation serves every value."""
    return torch.full((), value, dtype=torch.float32, device=like.device)


_STORED_ROWS = {"stored.packed": 0, "stored.ends": 0, "stored.keys": 0}
_active_sums_fused = fuse(_active_sums, rows={"y": 1})
_encode_fused = fuse(_encode, rows={"y": 0, "keys": 0})
_gradient_sums_fused = fuse(_gradient_sums, rows={"gradient": 0, **_STORED_ROWS})
_backpropagate_fused = fuse(_backpropagate, rows={"gradient": 0, **_STORED_ROWS})
_output_fused = fuse(_output, rows=_STORED_ROWS)
