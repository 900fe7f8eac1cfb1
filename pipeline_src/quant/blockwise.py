"""Block-wise stochastic rounding to packed 1-, 2-, 4- and 8-bit codes.

A tensor is cut, in row-major order, into blocks of `block_size` values that share a
zero point and a scale (EXACT: one block per row; Eliassen & Selvan 2024,
arXiv:2309.11856: blocks that span rows). Within a block,

    position = (x - zero_point) / scale         in bin units, 0 .. num_bins
    code     = i or i + 1                       where boundaries[i] <= position
    value    = zero_point + scale * boundaries[code]

and the upper edge is taken with the probability that makes the mean of the value x.

Three choices differ from the published kernels:

* Zero point and scale are rounded to their stored type, bfloat16, *before* coding,
  and outwards: the zero point down, the scale up. So each value lies within the grid
  that backward will use, and rounding stays unbiased; rounding them to nearest would
  clamp, and so bias, the extreme values of a block. It widens a block by at most
  2**-7 of its range plus 2**-7 of its minimum.
* Codes are clamped on both sides. A position can exceed num_bins by an ulp.
* The last block is padded with the last value and packed like all others.

A storage word is one byte of 8 / bits codes. Code j of word w of a block is value
j * words + w, so that the reduction over a block, the rounding and the packing share
one loop over w and fuse into one kernel. Where the codes of a block do not fill whole
words, as with blocks of 63 values, neighbouring blocks share words: a *packet* is the
smallest run of blocks that fills words.
"""

import itertools
import math

import torch
from torch import Tensor

from pipeline_src.quant.dtypes import as_float32, check_dtype, check_seed
from pipeline_src.quant.fusion import fuse, fusion_pays
from pipeline_src.quant.noise import row_keys, row_keys_fused, uniform_pair

PACKABLE_BITS = (1, 2, 4, 8)
_WORD_BITS = 8
_LOW_HALF = 0xFFFF  # the bits of a float32 that bfloat16 drops
_HIGH_HALF = -0x10000
# Below this scale a small part of a bin is a subnormal number, which a device may take
# for 0, and rounding would be biased. Such a block takes code 0: it decodes to its zero
# point, which errs by less than 2**bits times this.
_SMALLEST_SCALE = 2.0**-120
# Up to here a table of edges is searched by comparing with each of them.
_MAX_COMPARED_LEVELS = 16


def check_blocks(bits: int, block_size: int) -> None:
    """Refuse a width or a size that cannot be packed.

    Raises:
        ValueError: if bits cannot be packed or block_size is not positive.
    """
    if bits not in PACKABLE_BITS:
        raise ValueError(f"bits must be one of {PACKABLE_BITS}, got {bits}")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")


def check_boundaries(boundaries: Tensor, num_bins: int) -> None:
    """Refuse edges that are not those of num_bins bins, in bin units.

    Raises:
        ValueError: if they do not increase from 0 to num_bins.
        TypeError: if they are not float32.
    """
    given = boundaries.tolist()
    if len(given) != num_bins + 1:
        raise ValueError(
            f"boundaries of {num_bins} bins must be {num_bins + 1} values, "
            f"got {len(given)}"
        )
    check_dtype(boundaries, "boundaries", (torch.float32,))
    increasing = all(a < b for a, b in itertools.pairwise(given))
    if not increasing or given[0] != 0.0 or given[-1] != num_bins:
        raise ValueError(
            f"boundaries must increase strictly from 0 to {num_bins}, got {given}"
        )


def blocks_per_packet(bits: int, block_size: int) -> int:
    """The smallest number of blocks whose codes fill whole words."""
    codes_per_word = _WORD_BITS // bits
    return codes_per_word // math.gcd(codes_per_word, block_size)


def count_blocks(numel: int, bits: int, block_size: int) -> int:
    """Blocks that numel values take, the padding of the last packet counted."""
    in_packet = blocks_per_packet(bits, block_size)
    return -(-numel // (block_size * in_packet)) * in_packet


def compress_blocks(
    x: Tensor,  # float32 or half, any shape, activation units
    seed: Tensor,  # () int32
    bits: int,
    block_size: int,
    boundaries: Tensor | None = None,  # (2**bits,) float32, bin units; None = even
    compile: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Round at random to codes and pack them.

    Returns:
        packed, uint8, (num_packets, words per packet); zero_point and scale,
        bfloat16, (num_blocks,), in activation units. A block that holds NaN or
        infinity gets a scale that is not finite. No values give no blocks.

    Raises:
        TypeError: if x or the seed is of another type.
    """
    check_seed(seed)
    flat = as_float32(x.detach()).reshape(-1)
    in_packet = blocks_per_packet(bits, block_size)
    size = in_packet * block_size
    if flat.numel() == 0:
        none = flat.new_empty(0, dtype=torch.bfloat16)
        words = size * bits // _WORD_BITS
        return flat.new_empty((0, words), dtype=torch.uint8), none, none.clone()
    num_packets = -(-flat.numel() // size)
    shape = (-1, in_packet, _WORD_BITS // bits // in_packet, size * bits // _WORD_BITS)
    fused = fusion_pays(flat.numel(), flat.device, compile)
    kernel = _compress_fused if fused else _compress
    # Drawn outside the kernel: the compiler would inline the hash of the key into
    # that of every value, and spend minutes on it. A kernel of its own, because each
    # of a dozen plain operations makes the threads wait for each other.
    keys = (row_keys_fused if fused else row_keys)(seed, num_packets * in_packet)
    missing = num_packets * size - flat.numel()
    if missing == 0:
        return kernel(flat.view(shape), keys, boundaries, bits)
    # The tail holds the partial packet and a whole one, because a single one runs
    # plain. The body is a view: no copy of x.
    num_body = num_packets - 2 if num_packets >= 4 else 0
    tail = flat[num_body * size :]
    tail = torch.cat([tail, tail[-1:].expand(missing)]).view(shape)
    if num_body == 0:
        return _compress(tail, keys, boundaries, bits)
    body = flat[: num_body * size].view(shape)
    split = num_body * in_packet
    parts = zip(
        kernel(body, keys[:split], boundaries, bits),
        kernel(tail, keys[split:], boundaries, bits),
        strict=True,
    )
    packed, zero_point, scale = (torch.cat(pair) for pair in parts)
    return packed, zero_point, scale


def decompress_blocks(
    packed: Tensor,  # (num_packets, words per packet) uint8
    zero_point: Tensor,  # (num_blocks,) bfloat16
    scale: Tensor,  # (num_blocks,) bfloat16
    shape: torch.Size,
    bits: int,
    boundaries: Tensor | None = None,  # (2**bits,) float32, bin units; None = even
    compile: str = "auto",
) -> Tensor:
    """Unpack codes into values, float32, in the given shape."""
    numel = shape.numel()
    if numel == 0:
        return packed.new_empty(shape, dtype=torch.float32)
    in_packet = zero_point.numel() // packed.shape[0]
    fused = packed.shape[0] >= 4 and fusion_pays(numel, packed.device, compile)
    kernel = _decompress_fused if fused else _decompress
    if packed.device.type == "cpu":
        # Widened outside the kernel: one that loads bfloat16 handles twice as many
        # values at a time on a CPU, and converts these one by one, which is slower.
        zero_point, scale = zero_point.to(torch.float32), scale.to(torch.float32)
    grid = zero_point.view(-1, in_packet), scale.view(-1, in_packet)
    values = kernel(packed, *grid, boundaries, bits)
    return values.view(-1)[:numel].view(shape)


def _compress(
    x: Tensor,  # (packets, blocks, codes of a block in a word, words) float32
    keys: Tensor,  # (packets * blocks,) int32, of the noise
    boundaries: Tensor | None,
    bits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    num_packets, num_blocks, num_codes, num_words = x.shape
    num_bins = 2**bits - 1
    grids = [_grid_of(x[:, block], num_bins) for block in range(num_blocks)]
    keys = keys.view(num_packets, num_blocks, 1)
    words = torch.arange(num_words, dtype=torch.int32, device=x.device)
    draws = (num_codes + 1) // 2  # one draw gives the noise of two codes
    packed = torch.zeros((1, 1), dtype=torch.int32, device=x.device)
    for block, (zero_point, scale) in enumerate(grids):
        inverse_scale = torch.where(scale > _SMALLEST_SCALE, 1.0 / scale, 0.0)
        for j in range(num_codes):
            if j % 2 == 0:
                noise, noise_of_next = uniform_pair(
                    keys[:, block], words, step=draws, first=j // 2
                )
            else:
                noise = noise_of_next
            position = (x[:, block, j] - zero_point) * inverse_scale
            if boundaries is not None:
                position = even_position(position, boundaries, num_bins)
            code = torch.clamp((position + noise).to(torch.int32), 0, num_bins)
            packed = packed | (code << (bits * (block * num_codes + j)))
    zero_points, scales = (
        torch.cat(part, dim=1).to(torch.bfloat16).view(-1)
        for part in zip(*grids, strict=True)
    )
    return packed.to(torch.uint8), zero_points, scales


def _grid_of(
    x: Tensor,  # (packets, codes of a block in a word, words) of one block
    num_bins: int,
) -> tuple[Tensor, Tensor]:
    """Zero point and scale, (packets, 1) float32 that bfloat16 holds.

    Block by block where some share words, so that the reduction and the packing run
    over the same words, in one kernel.
    """
    smallest = largest = x[:, 0]
    for j in range(1, x.shape[1]):
        smallest = torch.minimum(smallest, x[:, j])
        largest = torch.maximum(largest, x[:, j])
    zero_point = round_down(smallest.amin(dim=-1, keepdim=True))
    width = largest.amax(dim=-1, keepdim=True) - zero_point
    scale = round_up(divide(width, num_bins))
    return zero_point, scale


def _decompress(
    packed: Tensor,  # (packets, words) uint8
    zero_point: Tensor,  # (packets, blocks) float32 or bfloat16
    scale: Tensor,  # (packets, blocks)
    boundaries: Tensor | None,
    bits: int,
) -> Tensor:
    num_packets, num_words = packed.shape
    num_blocks = zero_point.shape[1]
    num_codes = _WORD_BITS // bits // num_blocks
    shift = torch.arange(_WORD_BITS // bits, dtype=torch.int32, device=packed.device)
    shift = (shift * bits).view(1, num_blocks, num_codes, 1)
    words = packed.to(torch.int32).view(num_packets, 1, 1, num_words)
    code = (words >> shift) & (2**bits - 1)
    level = look_up(boundaries, code)
    scale, zero_point = scale.to(torch.float32), zero_point.to(torch.float32)
    return level * scale[:, :, None, None] + zero_point[:, :, None, None]


_compress_fused = fuse(_compress, rows={"x": 0, "keys": 0})
_decompress_fused = fuse(_decompress, rows={"packed": 0, "zero_point": 0, "scale": 0})


def divide(x: Tensor, divisor: int) -> Tensor:
    """The nearest float32 to x / divisor, on every device.

    A GPU multiplies by the reciprocal where it sees that a divisor is constant, which
    rounds twice. Here it does not see it.
    """
    return x / torch.where(x == x, float(divisor), torch.nan)


def round_down(x: Tensor) -> Tensor:
    """The largest bfloat16 value not above x, as float32.

    Written on the bits, because a compiler may drop a cast to bfloat16 and back.
    """
    bits = x.view(torch.int32)
    away_from_zero = torch.where(x < 0, bits + _LOW_HALF, bits)
    rounded = (away_from_zero & _HIGH_HALF).view(torch.float32)
    return torch.where(x == x, rounded, x)  # a NaN's bits could overflow


def round_up(x: Tensor) -> Tensor:
    """The smallest bfloat16 value not below x >= 0, as float32."""
    rounded = ((x.view(torch.int32) + _LOW_HALF) & _HIGH_HALF).view(torch.float32)
    return torch.where(x == x, rounded, x)


def even_position(position: Tensor, boundaries: Tensor, num_bins: int) -> Tensor:
    """Map positions so that bin i becomes the interval from i to i + 1.

    A piecewise linear map keeps the fraction of the way through a bin, which is the
    probability of the upper edge; after it, uneven bins round as even ones do.
    """
    if num_bins < _MAX_COMPARED_LEVELS:
        lower = torch.zeros_like(position)
        edge, width = boundaries[0], boundaries[1] - boundaries[0]
        for i in range(1, num_bins):
            beyond = position >= boundaries[i]
            lower = torch.where(beyond, float(i), lower)
            edge = torch.where(beyond, boundaries[i], edge)
            width = torch.where(beyond, boundaries[i + 1] - boundaries[i], width)
        return lower + (position - edge) / width
    index = torch.zeros_like(position, dtype=torch.int32)
    step = (num_bins + 1) // 2
    while step > 0:  # binary search; torch.bucketize would split the kernel in two
        index = index + step * (position >= boundaries[index + step])
        step //= 2
    index = torch.clamp(index, max=num_bins - 1)  # the last edge opens no bin
    edge = boundaries[index]
    return index.to(torch.float32) + (position - edge) / (boundaries[index + 1] - edge)


def look_up(boundaries: Tensor | None, code: Tensor) -> Tensor:
    """boundaries[code], by selection where the table is short: it vectorizes.

    None stands for even boundaries.
    """
    if boundaries is None:
        return code.to(torch.float32)
    if boundaries.numel() > _MAX_COMPARED_LEVELS:
        return boundaries[code]
    level = torch.where(code >= 1, boundaries[1], boundaries[0])
    for i in range(2, boundaries.numel()):
        level = torch.where(code >= i, boundaries[i], level)
    return level
