"""Codes of normalised activations from which the ReLU mask is read exactly.

Between two convolutions stand BatchNorm, ReLU and Dropout,

    n = (y - mean) / std,   u = weight n + bias,   h = u m / (1 - p) if u > 0, else 0.

Backward needs n (BatchNorm), the signs of u (ReLU), the mask m (Dropout) and h, the
input of the next convolution. All four come from one code per value:

* A code says on which side of ReLU's threshold t = -bias / weight the value lies, so
  the sign of u is exact and costs nothing extra.
* On its side, the distance of n from t is rounded at random to one of a few levels
  between t and the block's minimum or maximum, by noise that backward draws again
  (quant/shared_noise.py): every estimate of n is unbiased, with one level to choose
  from as with 127.
* m is noise of (seed, row, feature), the other half of the same draw.
* h is a function of n, u > 0 and m. Since the latter two are exact, the estimate of h
  is as unbiased as that of n.

BatchNorm's gradient multiplies n by the mean over nodes of g n, g being the gradient of
u. Both hold the same estimate, which makes the mean of the product too large by
g variance(n) / N at its own node: that is taken off, by an unbiased estimate of it.

**One bit is biased.** It holds the side and nothing else; either side is given by its
mean over all nodes, feature by feature. That is exact in the sum over nodes, but not
wherever n meets another value of its node, as it does in every gradient. No code of one
bit whose mask is exact can do better: it is used up.

The threshold belongs to a feature and is known from the layer's parameters; minimum
and maximum belong to a block of whole rows and are kept in bfloat16, rounded outwards,
the two in one word. A threshold beyond the block's end moves to that end, so that the
levels remain useful.

A byte holds the codes of 8 / bits consecutive rows at one feature, so all kernels run
along features, which are contiguous in activations and in codes alike. They overwrite
what they are given, a run of blocks at a time: a compiler left to itself holds up to
four tensors of the size that it is given, and a plain kernel a dozen, so plain ones
take even fewer blocks. Neither choice changes a bit of the results: sums over rows are
formed for 8 rows at a time in the order of the rows, added up run by run, and runs are
the same for both.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline_src.quant.blockwise import round_down
from pipeline_src.quant.fusion import fuse
from pipeline_src.quant.noise import row_keys, row_keys_fused, uniform_pair
from pipeline_src.quant.shared_noise import (
    estimate_share,
    estimate_variance,
    round_to_level,
)

RECTIFIED_BITS = (1, 2, 4, 8)
PLAIN_VALUES = 2**15  # that a plain kernel takes at once
RUN_VALUES = 2**20  # a compiled one, on a CPU: 4 MiB, a share of its cache
# There kernels hold nothing of the size they are given; sums over 8 rows are 64 MiB.
RUN_VALUES_ON_GPU = 2**26
# Ends below this decode to finite values and variances: an estimate lies within 5
# reaches of the middle, a reach is below 2**61, and (5 * 2**61)**2 is below 2**127.
LARGEST_END = 2.0**60
_ROWS_ADDED = 8  # in the order of rows, before anything else is added
_HIGH_HALF = -(2**16)  # of a word


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


@dataclass(frozen=True)
class RectifiedCoder:
    """Recipe for the codes of one layer.

    Raises:
        ValueError: if bits is not one of RECTIFIED_BITS or rows_per_block cannot be
            packed.
    """

    bits: int
    rows_per_block: int

    def __post_init__(self) -> None:
        if self.bits not in RECTIFIED_BITS:
            raise ValueError(f"bits must be one of {RECTIFIED_BITS}, got {self.bits}")
        per_byte = 8 // self.bits
        if self.rows_per_block < 1 or self.rows_per_block % per_byte:
            raise ValueError(
                f"rows_per_block must be a multiple of {per_byte} at {self.bits} bits, "
                f"because a byte holds the codes of {per_byte} rows; got "
                f"{self.rows_per_block}"
            )

    @property
    def keeps_ends(self) -> bool:
        """False where nothing is rounded."""
        return self.bits > 1

    @property
    def bytes_per_block(self) -> int:
        """Of one feature, along rows."""
        return self.rows_per_block * self.bits // 8

    @property
    def needs_means(self) -> bool:
        """True where a side has one level, which stands for the mean of that side."""
        return self.bits == 1


class RectifiedSetting(NamedTuple):
    """How a layer is coded in one step."""

    coder: RectifiedCoder
    normalization: Normalization
    # () float32, probability that a value is dropped; 0 if not dropped here. A tensor,
    # so that one compilation serves every value, and one for all layers of a step.
    dropout: Tensor
    side_means: Tensor | None  # (2, num_features): inactive, active; with one bit
    fused: bool  # run compiled kernels


class _Stored(NamedTuple):
    """Blocks of codes with all that reading them takes; what kernels get."""

    packed: Tensor  # (blocks, bytes along rows, features) uint8
    ends: Tensor | None  # (blocks,) int32; none with one bit
    keys: Tensor  # (blocks, bytes, codes of a byte) int32, of the noise
    dropout: Tensor  # () float32
    normalization: Normalization
    side_means: Tensor | None

    def blocks(self, blocks: slice) -> "_Stored":
        """The same of some blocks."""
        ends = None if self.ends is None else self.ends[blocks]
        packed, keys = self.packed[blocks], self.keys[blocks]
        return self._replace(packed=packed, ends=ends, keys=keys)


@dataclass(frozen=True, eq=False)
class RectifiedCodes:
    """What is kept of BatchNorm, ReLU and Dropout of a layer."""

    packed: Tensor  # (num_blocks, bytes along rows, num_features) uint8
    ends: Tensor | None  # (num_blocks,) int32: minimum and maximum of n, in bfloat16
    seed: Tensor  # () int32: of rounding and Dropout
    setting: RectifiedSetting

    @property
    def is_finite(self) -> Tensor:
        """() bool on the device: False where decoding might give NaN or infinity."""
        if self.ends is None:
            means = self.setting.side_means
            assert means is not None, "one bit has means where others have ends"
            return torch.isfinite(means).all()
        ends = self.ends.view(torch.bfloat16)
        if ends.numel() == 0:  # nothing has no largest
            return torch.isfinite(ends).all()
        largest = torch.linalg.vector_norm(ends, torch.inf)
        return largest < LARGEST_END  # false for NaN

    def gradient_sums(
        self,
        gradient: Tensor,  # (num_rows, num_features): of h; padding rows are 0
    ) -> Tensor:
        """Sums over rows of the gradient of u, and of that times n: (2, num_features).

        They are the gradients of BatchNorm's bias and weight.
        """
        kernel = _gradient_sums_fused if self.setting.fused else _gradient_sums
        _, num_bytes, per_byte, width = self.shape
        together = math.gcd(num_bytes, _ROWS_ADDED // per_byte)
        groups = num_bytes // together
        rows, total = gradient.view(self.shape), None
        for run in self._parts(fused=True):
            size = run.stop - run.start
            sums = gradient.new_empty((2, size, groups, width))
            for part in self._parts(blocks=size):
                of = slice(run.start + part.start, run.start + part.stop)
                kernel(rows[of], self._stored.blocks(of), sums[0, part], sums[1, part])
            of_run = sums.view(2, -1, width).sum(dim=1)
            total = of_run if total is None else total.add_(of_run)
        assert total is not None, "there are nodes, so blocks"
        return total

    def backpropagate(
        self,
        gradient: Tensor,  # (num_rows, num_features): of h; overwritten with that of y
        sums: Tensor,  # gradient_sums of all nodes; anything finite without BatchNorm
        share: Tensor,  # (): 1 / number of nodes; 0 without BatchNorm
    ) -> None:
        """Turn the gradient of h into the gradient of y, in place."""
        kernel = _backpropagate_fused if self.setting.fused else _backpropagate
        rows = gradient.view(self.shape)
        for part in self._parts():
            kernel(rows[part], self._stored.blocks(part), sums, share)

    def output(self, rows: slice) -> Tensor:
        """Estimate of h of some rows, whole blocks, (rows, num_features)."""
        return self._read(_output_fused if self.setting.fused else _output, rows)

    def normalized(self, rows: slice) -> Tensor:
        """Estimate of n of some rows, whole blocks, (rows, num_features)."""
        fused = self.setting.fused
        return self._read(_normalized_fused if fused else _normalized, rows)

    def _read(self, kernel: Callable[..., Any], rows: slice) -> Tensor:
        _, num_bytes, per_byte, width = self.shape
        rows_per_block = num_bytes * per_byte
        first, last = rows.start // rows_per_block, rows.stop // rows_per_block
        h = self.packed.new_empty(
            (last - first, num_bytes, per_byte, width), dtype=torch.float32
        )
        for part in self._parts(blocks=last - first):
            of = slice(first + part.start, first + part.stop)
            kernel(h[part], self._stored.blocks(of))
        return h.view(-1, width)

    @property
    def shape(self) -> torch.Size:
        """Blocks, bytes along rows, codes of a byte, features."""
        blocks, num_bytes, width = self.packed.shape
        return torch.Size((blocks, num_bytes, 8 // self.setting.coder.bits, width))

    def _parts(
        self, blocks: int | None = None, fused: bool | None = None
    ) -> Iterator[slice]:
        shape = self.shape
        blocks = shape[0] if blocks is None else blocks
        fused = self.setting.fused if fused is None else fused
        return _parts(blocks, shape[1:].numel(), fused, self.packed.device)

    @functools.cached_property
    def _stored(self) -> _Stored:
        """Made for backward, and once: three kernels read it."""
        setting = self.setting
        return _Stored(
            self.packed,
            self.ends,
            _keys(self.seed, self.shape, setting.fused),
            setting.dropout,
            setting.normalization,
            setting.side_means,
        )


def _parts(
    blocks: int, values: int, fused: bool, device: torch.device
) -> Iterator[slice]:
    """Blocks of so many values each that one call of a kernel takes."""
    on_gpu = device.type == "cuda"
    at_once = (RUN_VALUES_ON_GPU if on_gpu else RUN_VALUES) if fused else PLAIN_VALUES
    size = max(1, at_once // values)
    for start in range(0, blocks, size):
        yield slice(start, min(start + size, blocks))


def _keys(seed: Tensor, shape: torch.Size, fused: bool) -> Tensor:
    """Keys of the noise, one per row, (blocks, bytes, codes of a byte)."""
    # Drawn outside the other kernels: the compiler would inline the hash of the key
    # into that of every value.
    draw = row_keys_fused if fused else row_keys
    return draw(seed, shape[:3].numel()).view(shape[:3])


def side_means(
    y: Tensor,  # (num_rows, num_features): the first num_nodes rows count
    num_nodes: int,
    normalization: Normalization,
    fused: bool,
) -> Tensor:
    """Means of n over nodes on either side of ReLU, (2, width); 0 if it is empty."""
    kernel = _active_sums_fused if fused else _active_sums
    groups, width = num_nodes // _ROWS_ADDED, y.shape[1]
    whole = y[: groups * _ROWS_ADDED].view(groups, _ROWS_ADDED, width)
    sums = y.new_empty((3, groups, width))
    for part in _parts(groups, width, fused, y.device):
        kernel(whole[part], normalization, *(one[part] for one in sums))
    total = sums.sum(dim=1)
    if rest := num_nodes - len(whole) * _ROWS_ADDED:
        last = y.new_empty((3, rest, width))
        _active_sums(y[num_nodes - rest : num_nodes, None], normalization, *last)
        total += last.sum(dim=1)
    count, active, both = total
    counts = torch.stack([num_nodes - count, count])
    return torch.stack([both - active, active]) / counts.clamp(min=1)


def encode(
    y: Tensor,  # (num_rows, num_features) float32; overwritten with h
    seed: Tensor,  # () int32
    setting: RectifiedSetting,
) -> RectifiedCodes:
    """Overwrite all rows with their h and return the codes of their n.

    num_rows must be a multiple of rows_per_block.
    """
    codes = _empty_codes(len(y), y, seed, setting)
    _encode_blocks(y, (), codes, slice(0, len(codes.packed)))
    return codes


def encode_beside(
    y: Tensor,  # (num_rows, num_features) float32, num_rows >= 1
    output: Tensor,  # the same: what somebody else's ReLU made of it
    seed: Tensor,  # () int32
    setting: RectifiedSetting,  # without dropout
) -> RectifiedCodes:
    """Return the codes of n, active where the output is; overwrite nothing.

    The last block is filled up with the last row, which changes no block's ends.
    """
    block = setting.coder.rows_per_block
    codes = _empty_codes(-(-len(y) // block) * block, y, seed, setting)
    whole, of_whole = len(y) // block, len(y) // block * block
    if whole:
        of = slice(0, whole)
        _encode_blocks(y[:of_whole], (output[:of_whole],), codes, of)
    if of_whole < len(y):
        last = [_filled_up(one[of_whole:], block) for one in (y, output)]
        _encode_blocks(last[0], (last[1],), codes, slice(whole, whole + 1))
    return codes


def _empty_codes(
    num_rows: int, y: Tensor, seed: Tensor, setting: RectifiedSetting
) -> RectifiedCodes:
    coder, width = setting.coder, y.shape[1]
    blocks, num_bytes = num_rows // coder.rows_per_block, coder.bytes_per_block
    packed = y.new_empty((blocks, num_bytes, width), dtype=torch.uint8)
    ends = y.new_empty(blocks, dtype=torch.int32) if coder.keeps_ends else None
    return RectifiedCodes(packed, ends, seed, setting)


def _filled_up(rows: Tensor, num_rows: int) -> Tensor:
    return torch.cat([rows, rows[-1:].expand(num_rows - len(rows), -1)])


def _encode_blocks(
    y: Tensor,  # (rows of the blocks, num_features)
    outputs: tuple[Tensor, ...],  # none: y is overwritten with h; one: as y
    codes: RectifiedCodes,  # overwritten
    blocks: slice,
) -> None:
    setting, coder = codes.setting, codes.setting.coder
    width, num_bytes, per_byte = y.shape[1], coder.bytes_per_block, 8 // coder.bits
    keys = _keys(codes.seed, codes.shape, setting.fused)[blocks].view(-1, per_byte)
    packed = codes.packed[blocks]
    ends = None if codes.ends is None else codes.ends[blocks]
    kernel = _encode_fused if setting.fused else _encode
    rows, *others = (one.view(-1, per_byte, width) for one in (y, *outputs))
    values = coder.rows_per_block * width
    for part in _parts(len(packed), values, setting.fused, y.device):
        of_bytes = slice(part.start * num_bytes, part.stop * num_bytes)
        kernel(
            # One tensor for each code of a byte: a compiler that is given the whole
            # would write its pieces elsewhere and copy.
            tuple(rows[of_bytes, j] for j in range(per_byte)),
            tuple(one[of_bytes, j] for one in others for j in range(per_byte)),
            packed[part],
            None if ends is None else ends[part],
            keys[of_bytes],
            setting.dropout,
            setting.normalization,
        )


def _active_sums(
    y: Tensor,  # (groups, rows, features)
    normalization: Normalization,
    count: Tensor,  # (groups, features), overwritten with the number of active n
    of_active: Tensor,  # the same: their sum
    of_all: Tensor,  # the same: the sum of all n
) -> None:
    mean, inverse_std, weight, bias = normalization
    zero = torch.zeros((1, 1), device=y.device)
    sums = (zero, zero, zero)
    for row in y.unbind(1):
        normalized = (row - mean) * inverse_std
        # A product, not torch.where: choosing between constants is not vectorized.
        active = (normalized * weight + bias > 0).to(torch.float32)
        count_too, active_too, all_too = sums
        sums = (
            count_too + active,
            active_too + normalized * active,
            all_too + normalized,
        )
    for result, found in zip((count, of_active, of_all), sums, strict=True):
        result.copy_(found)


def _encode(
    rows: tuple[Tensor, ...],  # of each code of a byte: (blocks * bytes, features)
    outputs: tuple[Tensor, ...],  # the same, of ReLU; none: it is found here
    packed: Tensor,  # (blocks, bytes, features) uint8, overwritten
    ends: Tensor | None,  # (blocks,) int32, overwritten; none with one bit
    keys: Tensor,  # (blocks * bytes, codes of a byte) int32
    dropout: Tensor,  # ()
    normalization: Normalization,
) -> None:
    """Write codes and the two ends of each block; without outputs, h over rows."""
    mean, inverse_std, weight, bias = normalization
    per_byte = len(rows)
    bits = 8 // per_byte
    steps = 2 ** (bits - 1) - 1
    # So that the compiler takes the stride for a constant.
    stride = per_byte * packed.shape[2]
    assert all(one.stride(0) == stride for one in rows), "rows of other tensors"
    y = [one.view(packed.shape) for one in rows]
    columns = torch.arange(packed.shape[2], dtype=torch.int32, device=packed.device)
    scale = 1.0 / (1.0 - dropout)
    if ends is not None:
        smallest = largest = (y[0] - mean) * inverse_std
        for one in y[1:]:
            normalized = (one - mean) * inverse_std
            smallest = torch.minimum(smallest, normalized)
            largest = torch.maximum(largest, normalized)
        low = round_down(smallest.amin(dim=(1, 2)))
        high = -round_down(-largest.amax(dim=(1, 2)))
        middle, left, right = _sides(low, high, normalization.threshold)
        right_half = high.view(torch.int32) & _HIGH_HALF
        ends.copy_(((low.view(torch.int32) >> 16) & 0xFFFF) | right_half)

    codes = torch.zeros((1, 1, 1), dtype=torch.int32, device=packed.device)
    results = []
    for j in range(per_byte):
        normalized = (y[j] - mean) * inverse_std
        affine = normalized * weight + bias
        result = outputs[j].view(packed.shape) if outputs else affine
        active = ~(result <= 0)  # a NaN goes on, to be seen
        key = keys[:, j].view(packed.shape[0], packed.shape[1], 1)
        noise, dropping = uniform_pair(key, columns)
        code = active.to(torch.int32) << (bits - 1)
        if ends is not None:
            reach = torch.where(active == (weight >= 0), right, left)
            distance = torch.abs(normalized - middle)
            code = code + round_to_level(distance, torch.abs(reach), noise, steps)
        codes = codes | (code << (bits * j))
        if not outputs:
            passed = active & (dropping >= dropout)
            results.append(torch.where(passed, affine * scale, 0.0))
    packed.copy_(codes.to(torch.uint8))
    for one, result in zip(y, results, strict=False):  # no results beside outputs
        one.copy_(result)


def _sides(
    low: Tensor,  # (blocks,) float32, normalised units
    high: Tensor,
    threshold: Tensor,  # (features,)
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the sides of a block meet, and how far each reaches from there, signed."""
    low, high = low[:, None, None], high[:, None, None]
    middle = torch.minimum(torch.maximum(threshold, low), high)
    return middle, low - middle, high - middle


class _Decoded(NamedTuple):
    """Of some codes; all of one shape."""

    normalized: Tensor  # estimate of n
    variance: Tensor | float  # estimate of the variance of that
    kept: Tensor  # whether a value passed ReLU and Dropout


def _decode(
    stored: _Stored,
    words: Tensor,  # (blocks, ..., features) int32: bytes
    shift: Tensor | int,  # of the code in its byte
    keys: Tensor,  # broadcasts with words
) -> _Decoded:
    """One code of each byte."""
    per_byte = stored.keys.shape[-1]
    bits = 8 // per_byte
    steps = 2 ** (bits - 1) - 1
    code = words >> shift
    active = (code & (steps + 1)) != 0
    columns = torch.arange(words.shape[-1], dtype=torch.int32, device=words.device)
    noise, dropping = uniform_pair(keys, columns)
    kept = active & (dropping >= stored.dropout)
    if stored.ends is None:
        assert stored.side_means is not None, "one bit has means where others have ends"
        means = torch.where(active, stored.side_means[1], stored.side_means[0])
        return _Decoded(means, 0.0, kept)
    level = code & steps
    low = (stored.ends << 16).view(torch.float32)
    high = (stored.ends & _HIGH_HALF).view(torch.float32)
    sides = _sides(low, high, stored.normalization.threshold)
    missing = words.dim() - 3
    middle, left, right = (side[(slice(None), *(None,) * missing)] for side in sides)
    reach = torch.where(active == (stored.normalization.weight >= 0), right, left)
    return _Decoded(
        middle + reach * estimate_share(level, noise, steps),
        reach * reach * estimate_variance(level, noise, steps),
        kept,
    )


def _gradient_sums(
    gradient: Tensor,  # (blocks, bytes, codes of a byte, features)
    stored: _Stored,
    of_gradient: Tensor,  # (blocks, groups of rows, features), overwritten
    of_product: Tensor,  # the same
) -> None:
    """Write sums of the gradient of u and of that times n."""
    blocks, groups, width = of_gradient.shape
    found = _decode_all(stored)
    scale = 1.0 / (1.0 - stored.dropout)
    passed = torch.where(found.kept, gradient * scale, 0.0)
    for result, terms in (
        (of_gradient, passed),
        (of_product, passed * found.normalized),
    ):
        result.copy_(_sum_of_rows(terms.view(blocks, groups, -1, width)))


def _sum_of_rows(
    terms: Tensor,  # (blocks, groups, rows, features)
) -> Tensor:
    """Sum over rows, one after another: (blocks, groups, features)."""
    if torch.compiler.is_compiling() and terms.device.type == "cpu":
        return terms.sum(dim=2)  # a loop in that order, and quicker to compile
    total = torch.zeros((1, 1, 1), device=terms.device)
    for row in terms.unbind(2):
        total = total + row
    return total


def _decode_all(stored: _Stored) -> _Decoded:
    """All codes, (blocks, bytes, codes of a byte, features)."""
    per_byte = stored.keys.shape[-1]
    shift = torch.arange(per_byte, dtype=torch.int32, device=stored.packed.device)
    words = stored.packed.to(torch.int32)[:, :, None]
    return _decode(
        stored, words, (shift * (8 // per_byte))[:, None], stored.keys[..., None]
    )


def _backpropagate(
    gradient: Tensor,  # (blocks, bytes, codes of a byte, features): of h, then of y
    stored: _Stored,
    sums: Tensor,  # (2, features)
    share: Tensor,  # ()
) -> None:
    found = _decode_all(stored)
    norm = stored.normalization
    passed = torch.where(found.kept, gradient * (1.0 / (1.0 - stored.dropout)), 0.0)
    mean_gradient, mean_product = sums[0] * share, sums[1] * share
    # The mean product holds this node's own estimate of n: less what that adds.
    own = passed * found.variance * share
    centred = passed - mean_gradient - found.normalized * mean_product + own
    gradient.copy_(centred * (norm.weight * norm.inverse_std))


def _output(
    h: Tensor,  # (blocks, bytes, codes of a byte, features), overwritten
    stored: _Stored,
) -> None:
    """Write the estimate of h."""
    found = _decode_all(stored)
    affine = found.normalized * stored.normalization.weight + stored.normalization.bias
    h.copy_(torch.where(found.kept, affine * (1.0 / (1.0 - stored.dropout)), 0.0))


def _normalized(
    n: Tensor,  # (blocks, bytes, codes of a byte, features), overwritten
    stored: _Stored,
) -> None:
    """Write the estimate of n."""
    n.copy_(_decode_all(stored).normalized)


_STORED = {"stored.packed": 0, "stored.ends": 0, "stored.keys": 0}
_active_sums_fused = fuse(
    _active_sums, {"y": 0, "count": 0, "of_active": 0, "of_all": 0}
)
_encode_fused = fuse(
    _encode,
    {"rows": 0, "outputs": 0, "packed": 0, "ends": 0, "keys": 0},
    one_pass=True,
)
_gradient_sums_fused = fuse(
    _gradient_sums,
    {"gradient": 0, "of_gradient": 0, "of_product": 0, **_STORED},
    one_pass=True,
)
_backpropagate_fused = fuse(_backpropagate, {"gradient": 0, **_STORED}, one_pass=True)
_output_fused = fuse(_output, {"h": 0, **_STORED}, one_pass=True)
_normalized_fused = fuse(_normalized, {"n": 0, **_STORED}, one_pass=True)
