"""Attention values in few bits: a range per receiving node and head, codes per edge.

The softmax of attention makes the values of one receiver sum to 1, so a node with many
neighbours has small ones and a range for the whole tensor would give them one or two
codes. Here values come as segments, one per receiver, and each segment of each head
has a zero point and a scale of its own; or all share the range that is given.

Formula, rounding to nearest and layout of words are those of row_codes.py; a "row"
of codes is one head, so that many edges share bytes although a head has one value each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_src.quant.dtypes import as_float32
from pipeline_src.quant.fusion import fuse, fusion_pays
from pipeline_src.quant.row_codes import (
    codes_per_word,
    encode,
    grid_of,
    unpack_codes,
)


@dataclass(frozen=True, eq=False)
class PackedSegments:
    """Codes of all values, and a zero point and a scale per range and head."""

    words: Tensor  # (num_heads, words) uint8; int16 at 16 bits; heads lie together
    zero_point: Tensor  # (num_ranges, num_heads) float32 or bfloat16
    scale: Tensor
    num_values: int  # per head
    bits: int
    compile: str = "auto"

    @property
    def nbytes(self) -> int:
        """Bytes kept; which value lies in which segment is the graph's to know."""
        return self.words.nbytes + self.zero_point.nbytes + self.scale.nbytes

    def decode(
        self,
        owner: Tensor,  # (num_values,) int64: the segment of each value
    ) -> Tensor:
        """Float values, (num_values, num_heads)."""
        numel = self.num_values * self.words.shape[0]
        if not numel:
            return self.scale.new_empty(
                (self.num_values, self.words.shape[0]), dtype=torch.float32
            )
        fused = fusion_pays(numel, self.words.device, self.compile)
        words, grid = self.words.T, (self.zero_point, self.scale)
        if self.zero_point.shape[0] == 1:
            kernel = _decode_alike_fused if fused else _decode_alike
            values = kernel(words, *grid, self.bits)
        else:
            kernel = _decode_fused if fused else _decode
            values = kernel(words, *grid, owner, self.bits)
        return values[: self.num_values]  # the rest is padding


def pack_segments(
    values: Tensor,  # (num_values, num_heads) float32 or half, segment after segment
    pointer: Tensor,  # (num_segments + 1,) int64: where each segment starts
    owner: Tensor,  # (num_values,) int64: the segment of each value
    bits: int,  # 1 .. 16
    shared_range: tuple[Tensor, Tensor] | None = None,  # (1, num_heads) each
    metadata: torch.dtype = torch.float32,  # of zero points and scales, or bfloat16
    compile: str = "auto",
) -> PackedSegments:
    """Round to nearest and pack; a constant that metadata holds decodes exactly.

    With a shared range (smallest, largest) all segments use it, and values beyond are
    clipped. A range that is not finite, or that float32 cannot hold, is read as NaN.

    Raises:
        TypeError: if values are of another type.
    """
    values = as_float32(values.detach(), "values")
    if shared_range is None:
        smallest = torch.segment_reduce(values, "min", offsets=pointer, unsafe=True)
        largest = torch.segment_reduce(values, "max", offsets=pointer, unsafe=True)
    else:
        smallest, largest = (as_float32(one, "shared_range") for one in shared_range)
        owner = torch.zeros_like(owner)
    zero_point, scale, inverse_scale = grid_of(smallest, largest, bits, metadata)
    words = encode(
        values.T,
        zero_point.index_select(0, owner).T,
        inverse_scale.index_select(0, owner).T,
        bits,
        compile,
        few_rows=True,
    )
    words = words.T.contiguous().T  # where it was not: heads lie together
    zero_point, scale = zero_point.to(metadata), scale.to(metadata)
    return PackedSegments(words, zero_point, scale, values.shape[0], bits, compile)


def _decode(
    words: Tensor,  # (num_words, num_heads)
    zero_point: Tensor,  # (num_ranges, num_heads)
    scale: Tensor,
    owner: Tensor,  # (num_values,)
    bits: int,
) -> Tensor:
    """Values and padding, (num_words * codes of a word, num_heads).

    All codes are decoded: that some are padding is known to the caller, and would be
    another kernel. Padding belongs to the last value's segment.
    """
    codes = _codes_of(words, bits)
    place = torch.arange(codes.shape[0], device=words.device)
    owner = owner[torch.clamp(place, max=owner.shape[0] - 1)]
    step = scale.index_select(0, owner).to(torch.float32)
    return codes * step + zero_point.index_select(0, owner).to(torch.float32)


def _decode_alike(
    words: Tensor, zero_point: Tensor, scale: Tensor, bits: int
) -> Tensor:
    """As _decode, with one range for all segments, (1, num_heads)."""
    step, first = scale.to(torch.float32), zero_point.to(torch.float32)
    return _codes_of(words, bits) * step + first


def _codes_of(words: Tensor, bits: int) -> Tensor:
    """Float codes, padding too, (num_words * codes of a word, num_heads)."""
    codes = unpack_codes(words.view(1, -1), words.numel() * codes_per_word(bits), bits)
    return codes.view(-1, words.shape[1]).to(torch.float32)


_decode_fused = fuse(
    _decode, rows={"words": 0, "zero_point": 0, "scale": 0, "owner": 0}
)
_decode_alike_fused = fuse(_decode_alike, rows={"words": 0})
