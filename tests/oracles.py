"""Slow, obvious versions of the kernels: one value at a time, in plain Python."""

import math
import struct

import numpy as np

WORD = 2**32
GOLDEN = 0x9E3779B9


def mix(word: int) -> int:
    """The 32-bit mixer on unsigned Python integers."""
    word ^= word >> 16
    word = word * 0x7FEB352D % WORD
    word ^= word >> 15
    word = word * 0x846CA68B % WORD
    return word ^ word >> 16


def noise(seed: int, row: int, draw: int, half: int) -> np.float32:
    """Uniform number of a row; half 0 is the low 16 bits of the draw, 1 the high."""
    key = mix((row + mix(seed % WORD)) % WORD)
    word = mix((key + draw * GOLDEN) % WORD)
    interval = word >> 16 if half else word & 0xFFFF
    return np.float32((interval + 0.5) / 2**16)


def round_outwards(value: np.float32, up: bool) -> np.float32:
    """Nearest bfloat16 value not below (up) or not above, from the bits."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    truncated = bits & 0xFFFF0000
    candidates = [truncated, truncated + 0x10000]
    values = [
        np.float32(struct.unpack("<f", struct.pack("<I", c))[0]) for c in candidates
    ]
    if up:
        return min(v for v in values if v >= value)
    return max(v for v in values if v <= value)


def quantize_block(values, seed, row, bits, boundaries, words, codes_per_word):
    """Codes of one block, its zero point and its scale."""
    num_bins = 2**bits - 1
    zero_point = round_outwards(min(values), up=False)
    width = np.float32(max(values)) - zero_point
    scale = round_outwards(np.float32(width / np.float32(num_bins)), up=True)
    inverse = np.float32(1) / scale if scale > 2.0**-120 else np.float32(0)
    codes = []
    draws = math.ceil(codes_per_word / 2)
    for index, value in enumerate(values):
        j, word = divmod(index, words)
        position = np.float32((value - zero_point) * inverse)
        if boundaries is not None:
            lower = max(
                i for i in range(num_bins) if i == 0 or position >= boundaries[i]
            )
            edge, upper = boundaries[lower], boundaries[lower + 1]
            position = np.float32(lower) + (position - edge) / (upper - edge)
        draw = word * draws + j // 2
        rounded = int(np.float32(position + noise(seed, row, draw, j % 2)))
        codes.append(min(max(rounded, 0), num_bins))
    return codes, zero_point, scale


def pack_blocks(blocks, bits, words, codes_per_word):
    """Bytes of one packet: code j of block b stands at place b * codes_per_word + j."""
    packed = []
    for word in range(words):
        byte = 0
        for b, codes in enumerate(blocks):
            for j in range(codes_per_word):
                place = b * codes_per_word + j
                byte |= codes[j * words + word] << (bits * place)
        packed.append(byte)
    return packed
