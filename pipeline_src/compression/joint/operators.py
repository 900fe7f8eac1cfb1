"""What the pass puts into graphs: operators that the compiler does not look into.

Codes are those of quant/blockwise.py and bits those of quant/bitmask.py, by the same
kernels, so that what a compiled model keeps is what any other keeps. The compiler is
told shapes alone. A fused hash and rounding would save a pass over memory, but would
change how the operations before it are scheduled, and with it, perhaps, their bits.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline_src.quant.bitmask import pack_mask, unpack_mask
from pipeline_src.quant.blockwise import (
    blocks_per_packet,
    compress_blocks,
    count_blocks,
    decompress_blocks,
)
from pipeline_src.quant.noise import wrap

_SEEDS_APART = 7_368_787  # an odd prime, so that seeds and steps do not meet soon
_SITES_APART = 0x9E3779B1


@dataclass
class Site:
    """Where a graph rounds: each run of it draws noise of its own."""

    seed: int  # of the configuration
    index: int  # of the site in what one backend compiled
    runs: "itertools.count[int]" = field(default_factory=itertools.count)

    def next_seed(self) -> int:
        """Of the run that begins, an int32."""
        first = self.seed * _SEEDS_APART + self.index * _SITES_APART
        return wrap(first + next(self.runs))


_sites: list[Site] = []


def new_site(seed: int, index: int) -> int:
    """A number by which `encode` finds its site: graphs hold numbers, not objects."""
    _sites.append(Site(seed, index))
    return len(_sites) - 1


def _boundaries(levels: Sequence[float], device: torch.device) -> Tensor | None:
    return torch.tensor(levels, device=device) if levels else None


@torch.library.custom_op(
    "pipeline_src::encode",
    mutates_args=(),
    tags=(torch.Tag.nondeterministic_seeded,),
)
def encode(
    x: Tensor,  # float32 or half, any shape
    site: int,
    bits: int,
    block_size: int,
    levels: Sequence[float],  # edges of the bins, none: even
) -> tuple[Tensor, Tensor, Tensor]:
    """Packed codes, zero points and scales, as compress_blocks has them."""
    seed = torch.full((), _sites[site].next_seed(), dtype=torch.int32, device=x.device)
    edges = _boundaries(levels, x.device)
    return compress_blocks(x, seed, bits, block_size, edges)


@encode.register_fake
def _(
    x: Tensor, site: int, bits: int, block_size: int, levels: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    in_packet = blocks_per_packet(bits, block_size)
    num_blocks = count_blocks(x.numel(), bits, block_size)
    words = in_packet * block_size * bits // 8
    packed = x.new_empty((num_blocks // in_packet, words), dtype=torch.uint8)
    zero_point = x.new_empty((num_blocks,), dtype=torch.bfloat16)
    return packed, zero_point, torch.empty_like(zero_point)


@torch.library.custom_op("pipeline_src::decode", mutates_args=())
def decode(
    packed: Tensor,
    zero_point: Tensor,
    scale: Tensor,
    shape: Sequence[int],
    bits: int,
    levels: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """An estimate of what was encoded, whose mean it is, of its shape and type."""
    edges = _boundaries(levels, packed.device)
    size = torch.Size(shape)
    return decompress_blocks(packed, zero_point, scale, size, bits, edges).to(dtype)


@decode.register_fake
def _(
    packed: Tensor,
    zero_point: Tensor,
    scale: Tensor,
    shape: Sequence[int],
    bits: int,
    levels: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    return packed.new_empty(shape, dtype=dtype)


@torch.library.custom_op("pipeline_src::pack_bits", mutates_args=())
def pack_bits(mask: Tensor) -> Tensor:
    """One bit per value of a mask, (ceil(numel / 8),) uint8."""
    return pack_mask(mask)


@pack_bits.register_fake
def _(mask: Tensor) -> Tensor:
    return mask.new_empty((-(-mask.numel() // 8),), dtype=torch.uint8)


@torch.library.custom_op("pipeline_src::unpack_bits", mutates_args=())
def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask, bool."""
    return unpack_mask(packed, torch.Size(shape))


@unpack_bits.register_fake
def _(packed: Tensor, shape: Sequence[int]) -> Tensor:
    return packed.new_empty(shape, dtype=torch.bool)
