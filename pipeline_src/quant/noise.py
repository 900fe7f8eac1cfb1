"""Uniform noise as a pure function of (seed, position).

Stochastic rounding needs one uniform number per value. A stateful generator would
have to be stored, replayed in order, and would differ between devices; a hash of the
position needs none of that. Any value of the noise can be recomputed at any time, in
any order, in eager or compiled code, on a CPU or a GPU, with the same bits.

The hash is a multiply-xorshift mixer on 32 bits (constants: C. Wellons, "Prospecting
for hash functions", 2018: lowbias32). It is applied twice: once to (seed, row), whose
result is a key shared by the row, and once to (key, column). Each result holds two
uniform numbers of 16 bits. That is enough: the mean of a rounded value is off by at
most 1 + num_bins / 32 times 2**-17 of a bin. The 1 is half an interval of the noise,
the rest are four roundings of a float32 position, up to num_bins: with 2 bits nothing
beside it, with 8 bits eight times as much.

All arithmetic is int32, which wraps around alike everywhere. A right shift of an int32
copies the sign, so each shift is masked to act on the unsigned value. A product of
constants is wrapped here: a compiler folds it beyond int32, and may then refuse it.
"""

import torch
from torch import Tensor

from pipeline_src.quant.fusion import fuse

RESOLUTION_BITS = 16  # of one uniform number


def wrap(constant: int) -> int:
    """The int32 that an integer becomes, as hardware wraps it around.

    >>> wrap(2**31), wrap(-3281063054), wrap(7)
    (-2147483648, 1013904242, 7)
    """
    return (constant + 2**31) % 2**32 - 2**31


GOLDEN = wrap(0x9E3779B9)  # odd, spreads consecutive columns over the 32 bits
_MIX_FIRST = 0x7FEB352D
_MIX_SECOND = wrap(0x846CA68B)


def mix(
    word: Tensor,  # int32, any shape
) -> Tensor:
    """Map each int32 to another one, a bijection in which every bit matters."""
    word = word ^ ((word >> 16) & 0xFFFF)
    word = word * _MIX_FIRST
    word = word ^ ((word >> 15) & 0x1FFFF)
    word = word * _MIX_SECOND
    return word ^ ((word >> 16) & 0xFFFF)


def row_keys(
    seed: Tensor,  # () int32
    num_rows: int,
    first: int = 0,
) -> Tensor:
    """One int32 key for each row from `first` on, shaped (num_rows,)."""
    rows = torch.arange(first, first + num_rows, dtype=torch.int32, device=seed.device)
    # Mixing the seed first keeps seeds that differ in few bits from sharing keys
    # in another order, which (row ^ seed) alone would do.
    return mix(rows + mix(seed))


def row_keys_fused(
    seed: Tensor,  # () int32
    num_rows: int,
) -> Tensor:
    """row_keys from row 0 on, in one launch."""
    # Takes no memory: it tells the compiled kernel the number of rows.
    return _keys_fused(seed.expand(num_rows))


def uniform_pair(
    keys: Tensor,  # int32, broadcasts with columns
    columns: Tensor,  # int32
    step: int = 1,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """Two independent float32 numbers in (0, 1) for each (key, first + step * column).

    They are the midpoints of 2**16 equal intervals, so neither 0 nor 1 occurs and
    the mean over all of them is exactly one half.
    """
    word = mix(keys + (columns * wrap(step * GOLDEN) + wrap(first * GOLDEN)))
    return _midpoint(word & 0xFFFF), _midpoint((word >> 16) & 0xFFFF)


def _midpoint(interval: Tensor) -> Tensor:
    return (interval.to(torch.float32) + 0.5) * 2.0**-RESOLUTION_BITS


def _keys(
    seeds: Tensor,  # (num_rows,) int32, all alike
) -> Tensor:
    rows = torch.arange(seeds.shape[0], dtype=torch.int32, device=seeds.device)
    return mix(rows + mix(seeds))


_keys_fused = fuse(_keys, rows={"seeds": 0})
