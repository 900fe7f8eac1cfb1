"""How rows travel: as float32, or as codes with a zero point and a scale of each row.

Coded rows are rounded at random (quant/blockwise.py), so what arrives has the mean of
what was sent: an aggregation of it is unbiased. What a network makes of it is not,
where it is not linear. A row of `width` values takes

    32 bits     4 width
    b bits      ceil(width b / 8) + 2 + 2        codes, zero point and scale (bfloat16)

bytes, and nothing else is sent: both sides know which nodes the rows are. 128 values in
2 bits are 36 bytes instead of 512.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_src.quant.blockwise import (
    PACKABLE_BITS,
    compress_blocks,
    decompress_blocks,
)

_WORD_BITS = 8
_METADATA = 2  # bytes of a bfloat16


@dataclass(frozen=True)
class Wire:
    """Rows to bytes and back.

    Raises:
        ValueError: if bits is not 1, 2, 4, 8, or 32 for float32.

    >>> Wire(2).row_bytes(128), Wire().row_bytes(128)
    (36, 512)
    """

    bits: int = 32  # of a value
    compile: str = "auto"

    def __post_init__(self) -> None:
        if self.bits not in (*PACKABLE_BITS, 32):
            raise ValueError(
                f"bits of the wire must be one of {PACKABLE_BITS}, or 32 for float32, "
                f"got {self.bits}"
            )

    def row_bytes(self, width: int) -> int:
        """Bytes that a row of `width` values takes."""
        if self.bits == 32:
            return 4 * width
        return -(-width * self.bits // _WORD_BITS) + 2 * _METADATA

    def encode(
        self,
        rows: Tensor,  # (num_rows, width) float32
        seed: Tensor | None,  # () int32, of the rounding; None with 32 bits
    ) -> Tensor:
        """What is sent, (num_rows, row_bytes) uint8."""
        if self.bits == 32:
            return rows.contiguous().view(torch.uint8)
        assert seed is not None, "codes are rounded by a seed"
        # Copies of the last value fill a row's words, so that none is shared by rows;
        # they change neither end of its range.
        missing = -rows.shape[1] % (_WORD_BITS // self.bits)
        filled = torch.cat([rows, rows[:, -1:].expand(-1, missing)], dim=1)
        codes, *ends = compress_blocks(
            filled, seed, self.bits, filled.shape[1], compile=self.compile
        )
        return torch.cat(
            [codes, *(one.view(torch.uint8).view(-1, _METADATA) for one in ends)], dim=1
        )

    def decode(
        self,
        message: Tensor,  # (num_rows, row_bytes) uint8
        width: int,
    ) -> Tensor:
        """The rows that arrived, (num_rows, width) float32."""
        if self.bits == 32:
            return message.view(torch.float32)
        words = message.shape[1] - 2 * _METADATA
        # Copied, because a view would begin at an odd byte.
        ends = message[:, words:].reshape(-1).clone().view(torch.bfloat16).view(-1, 2)
        zero_point, scale = (one.contiguous() for one in ends.unbind(1))
        filled = torch.Size((message.shape[0], words * _WORD_BITS // self.bits))
        values = decompress_blocks(
            message[:, :words].contiguous(),
            zero_point,
            scale,
            filled,
            self.bits,
            compile=self.compile,
        )
        return values[:, :width]
