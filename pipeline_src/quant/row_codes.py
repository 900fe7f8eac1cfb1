"""Rows of values to packed codes by nearest rounding, and back.

The formula is that of SGQuant's released code (`quant.py`), num_bins = 2**bits - 1:

    code  = round_half_even(clamp((x - zero_point) / scale, 0, num_bins))
    value = zero_point + scale * code

Four choices:

* The zero point is the float minimum, so a constant row, whose scale is 0, decodes
  exactly. Both are stored as float32, or as bfloat16 rounded outwards (down, up) as
  in blockwise.py; then constants are exact where bfloat16 holds them, as it does 0.
* The scale is rounded up to so few significant bits that code * scale has no rounding
  error: 24 - bits of them for float32 (all 24 at 1 bit, where codes are 0 and 1), 8
  for bfloat16. A fused multiply-add then changes nothing, so plain and compiled
  kernels give the same bits. It widens a range by at most 2**(bits - 23) of itself.
* A negative scale, -0 included, marks a row whose code 0 is exact zero and nothing
  else; its other codes count from the zero point: value = zero_point + |scale| *
  (code - 1). Absent words of a bag then never look present, nor present ones absent.
* Code j of storage word w is value j * words + w, as in blockwise.py: shifts and masks
  then run along contiguous words. Each row fills whole words; its last codes are
  padding, and counted. 16-bit codes take one int16 word each, others share bytes.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipeline_src.quant.blockwise import divide, round_down
from pipeline_src.quant.fusion import fuse, fusion_pays

_WORD_BITS = 8
_BFLOAT16_DROPS = 16  # bits of a float32
# As in blockwise.py: such a range takes code 0, which errs by less than 2**bits times
# this.
_SMALLEST_SCALE = 2.0**-120
_FITTING_ROUNDS = 4  # of codes and grid in turn; more change little


def count_words(num_values: int, bits: int) -> int:
    """Storage words that a row of codes takes, padding counted.

    >>> count_words(1433, 1), count_words(3, 4), count_words(3, 16)
    (180, 2, 3)
    """
    return num_values if bits == 16 else -(-num_values * bits // _WORD_BITS)


def codes_per_word(bits: int) -> int:
    """Codes that share a storage word."""
    return 1 if bits == 16 else _WORD_BITS // bits


def grid_of(
    smallest: Tensor,  # float32, any shape, feature units
    largest: Tensor,
    bits: int,
    metadata: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Zero point, scale and inverse scale of ranges, float32 that metadata holds.

    The inverse is 0 where the scale is too small: code 0 for all. The zero point is NaN
    where the last code would stand for no finite number, so that all values are read
    as NaN: where an end is not finite, or the range is more than float32 can hold.
    """
    if metadata == torch.bfloat16:
        smallest, dropped = round_down(smallest), _BFLOAT16_DROPS
    else:
        dropped = bits if bits > 1 else 0
    num_bins = 2**bits - 1
    scale = _round_up(divide(largest - smallest, num_bins), dropped)
    smallest = torch.where(_is_held(smallest, scale, num_bins), smallest, torch.nan)
    return smallest, scale, torch.where(scale > _SMALLEST_SCALE, 1.0 / scale, 0.0)


def support_grid_of(
    x: Tensor,  # (num_rows, num_values) float32
    bits: int,
    metadata: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """As grid_of, per row; where the least value is 0, code 0 means exactly that.

    The other codes of such a row are fitted to its positive values: in turn, each value
    takes the nearest code, and zero point and scale are those of least squared error.
    So one bit stands for the mean of the positive values.

    Returns:
        Zero point, scale and inverse scale, (num_rows,); negative ones mark such rows.
    """
    smallest, largest = torch.aminmax(x, dim=1)
    plain = grid_of(smallest, largest, bits, metadata)
    positive = x > 0
    count = positive.sum(dim=1).clamp_min(1)
    mean = x.sum(dim=1) / count
    if bits == 1:
        first, scale = mean, torch.zeros_like(mean)
    else:
        first = torch.where(positive, x, largest[:, None]).amin(dim=1)
        scale = divide(largest - first, 2**bits - 2)
    for _ in range(_FITTING_ROUNDS if bits > 1 else 0):
        inverse = torch.where(scale > _SMALLEST_SCALE, 1.0 / scale, 0.0)
        codes = torch.round((x - first[:, None]) * inverse[:, None])
        codes = torch.clamp(codes, 0, 2**bits - 2) * positive
        mean_code = codes.sum(dim=1) / count
        from_mean = (codes - mean_code[:, None]) * positive
        spread = from_mean.square().sum(dim=1)
        slope = (from_mean * x).sum(dim=1) / spread
        scale = torch.where(spread > 0, slope, scale)
        first = torch.where(spread > 0, mean - slope * mean_code, first)
    if metadata == torch.bfloat16:
        first = first.to(metadata).to(torch.float32)
    dropped = _BFLOAT16_DROPS if metadata == torch.bfloat16 else bits
    scale = _round_up(scale, dropped)
    inverse = torch.where(scale > _SMALLEST_SCALE, 1.0 / scale, 0.0)
    # What cannot be held, sums above float32 among them, is left to the plain range.
    has_zeros = (smallest == 0) & _is_held(first, scale, 2**bits - 2)
    fitted = (first, -scale, -inverse)
    first, scale, inverse = (
        torch.where(has_zeros, one, other)
        for one, other in zip(fitted, plain, strict=True)
    )
    return first, scale, inverse


def encode(
    x: Tensor,  # (num_rows, num_values) float32
    zero_point: Tensor,  # float32, to broadcast with x
    inverse_scale: Tensor,
    bits: int,  # 1 .. 16
    compile: str = "auto",
    few_rows: bool = False,  # of any length: their number is a kernel's constant
) -> Tensor:
    """Codes packed row by row, (num_rows, words): uint8, at 16 bits int16."""
    kernel = _encode
    if fusion_pays(x.numel(), x.device, compile):
        kernel = _encode_few_fused if few_rows else _encode_fused
    return kernel(x, zero_point, inverse_scale, bits)


def pack_by_row(
    x: Tensor,  # (num_rows, num_values) float32
    bits: int,
    metadata: torch.dtype,
    compile: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """A range for each row, then encode: words, zero point and scale, by one kernel."""
    fused = fusion_pays(x.numel(), x.device, compile)
    return (_pack_fused if fused else _pack)(x, bits, metadata)


def values_of(codes: Tensor, zero_point: Tensor, scale: Tensor) -> Tensor:
    """What codes stand for, float32; zero_point and scale broadcast with them."""
    marked = torch.signbit(scale)
    codes = codes.to(torch.float32)
    values = (codes - marked.to(torch.float32)) * scale.abs() + zero_point
    return torch.where(marked & (codes == 0), 0.0, values)


def unpack_codes(
    words: Tensor,  # (num_rows, words) uint8 or int16
    num_values: int,
    bits: int,
) -> Tensor:
    """Codes of packed rows, (num_rows, num_values) int32."""
    words = words.to(torch.int32)
    if bits == 16:
        return words & 0xFFFF
    shift = torch.arange(0, _WORD_BITS, bits, dtype=torch.int32, device=words.device)
    codes = (words[:, None, :] >> shift[:, None]) & (2**bits - 1)
    per_row = words.shape[1] * (_WORD_BITS // bits)  # not -1: there may be no rows
    return codes.reshape(words.shape[0], per_row)[:, :num_values]


def _encode(x: Tensor, zero_point: Tensor, inverse_scale: Tensor, bits: int) -> Tensor:
    marked = torch.signbit(inverse_scale).to(torch.float32)  # code 0 is zero alone
    position = torch.round((x - zero_point) * inverse_scale.abs()) + marked
    codes = torch.maximum(torch.clamp(position, 0, 2**bits - 1), marked)
    codes = torch.where((marked > 0) & (x == 0), 0.0, codes).to(torch.int32)
    if bits == 16:
        return codes.to(torch.int16)  # wraps round; reading masks the sign away
    per_word = codes_per_word(bits)
    num_words = (x.shape[1] + per_word - 1) // per_word
    codes = functional.pad(codes, (0, per_word * num_words - x.shape[1]))
    codes = codes.view(x.shape[0], per_word, num_words)
    packed = codes[:, 0]
    for j in range(1, per_word):
        packed = packed | (codes[:, j] << (bits * j))
    return packed.to(torch.uint8)


def _pack(x: Tensor, bits: int, metadata: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    zero_point, scale, inverse_scale = grid_of(*_ends_of(x, bits), bits, metadata)
    words = _encode(x, zero_point[:, None], inverse_scale[:, None], bits)
    return words, zero_point.to(metadata), scale.to(metadata)


def _ends_of(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each row, (num_rows,).

    Taken over words, as codes are packed, so that both run over the same words in one
    kernel, which reads x from memory once.
    """
    num_rows, num_values = x.shape
    per_word, num_words = codes_per_word(bits), count_words(num_values, bits)
    if missing := per_word * num_words - num_values:
        x = functional.pad(x, (0, missing), mode="replicate")
    parts = x.view(num_rows, per_word, num_words)
    smallest = largest = parts[:, 0]
    for j in range(1, per_word):
        smallest = torch.minimum(smallest, parts[:, j])
        largest = torch.maximum(largest, parts[:, j])
    return smallest.amin(dim=1), largest.amax(dim=1)


_pack_fused = fuse(_pack, rows={"x": 0})
_encode_few_fused = fuse(_encode, rows={"x": 1, "zero_point": 1, "inverse_scale": 1})
_encode_fused = fuse(_encode, rows={"x": 0, "zero_point": 0, "inverse_scale": 0})


def _is_held(first: Tensor, scale: Tensor, num_steps: int) -> Tensor:
    """Whether first + num_steps * scale is finite, also before it is added up."""
    reach = scale * num_steps  # exact, so that fusing it with the sum changes nothing
    return torch.isfinite(reach) & torch.isfinite(first + reach)


def _round_up(x: Tensor, dropped: int) -> Tensor:
    """The smallest float32 not below x >= 0 whose last `dropped` bits are 0."""
    low = 2**dropped - 1
    rounded = ((x.view(torch.int32) + low) & ~low).view(torch.float32)
    return torch.where(torch.isfinite(x), rounded, x)
