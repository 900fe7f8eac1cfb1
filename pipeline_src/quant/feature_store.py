"""Rows of features in 1 to 16 bits, packed so that nodes can be gathered.

Stored features are read by node, again and again, so each row fills whole bytes of its
own and `gather` selects packed bytes before it dequantises them. Rounding is to
nearest (row_codes.py): a stored feature is read, not averaged over draws, and nearest
is the least error.

A *range* is what zero point and scale are taken from, and how many rows share it:

    node          minimum and maximum of each row
    support       the same, but where a row's minimum is 0, code 0 is kept for zeros and
                  the other codes are fitted to the positive values (row_codes.py)
    block         of `rows_per_block` consecutive rows
    tensor        of all rows
    mean_of_rows  mean of the rows' minima, mean of their maxima, for all rows: the
                  rule of SGQuant's released code. It clips what lies beyond; the
                  others clip nothing

Where widths differ, rows lie together by *group* (a bucket of degrees), and a range
never spans two groups. Then a position per node, int32, tells where its row lies among
the groups one after another; it is counted. Groups of one width need none of this.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_src.quant.dtypes import as_float32, as_floats, check_dtype
from pipeline_src.quant.fusion import fuse, fusion_pays
from pipeline_src.quant.row_codes import (
    count_words,
    encode,
    grid_of,
    pack_by_row,
    support_grid_of,
    unpack_codes,
    values_of,
)

STORABLE_BITS = (1, 2, 4, 8, 16, 32)
RANGES = ("node", "support", "block", "tensor", "mean_of_rows")
METADATA_TYPES = (torch.float32, torch.bfloat16)
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

# words, zero_point, scale, rows per range, bits
_Part = tuple[Tensor, Tensor | None, Tensor | None, int, int]


@dataclass(frozen=True)
class RowPacking:
    """How rows are stored, but for their bits.

    Raises:
        ValueError: if a choice is unknown or rows_per_block is not positive.
    """

    range: str = "node"  # one of RANGES
    rows_per_block: int = 1  # of the range "block"
    metadata: torch.dtype = torch.float32  # of zero points and scales
    compile: str = "auto"

    def __post_init__(self) -> None:
        if self.range not in RANGES:
            raise ValueError(f"range must be one of {RANGES}, got {self.range!r}")
        if self.rows_per_block < 1:
            raise ValueError(
                f"rows_per_block must be at least 1, got {self.rows_per_block}"
            )
        if self.metadata not in METADATA_TYPES:
            raise ValueError(
                f"metadata must be one of {METADATA_TYPES}, got {self.metadata}"
            )

    def rows_per_range(self, num_rows: int) -> int:
        """Rows that share a zero point and a scale."""
        if self.range == "block":
            return self.rows_per_block
        return 1 if self.range in ("node", "support") else max(num_rows, 1)


@dataclass(frozen=True, eq=False)
class RowGroups:
    """Which rows share a width: worked out once, used whenever rows are stored."""

    order: Tensor  # (num_rows,) int64: rows, group after group
    position: Tensor  # (num_rows,) int32: where each row lies in that order
    sizes: tuple[int, ...]  # rows of each group

    @classmethod
    def of(cls, group: Tensor, num_groups: int) -> "RowGroups":
        """From the group of each row, (num_rows,) int; waits for the device.

        Raises:
            TypeError: if groups are not whole numbers.

        >>> groups = RowGroups.of(torch.tensor([1, 0, 1]), 2)
        >>> groups.order.tolist(), groups.position.tolist(), groups.sizes
        ([1, 0, 2], [1, 0, 2], (1, 2))
        """
        check_dtype(group, "group", _WHOLE)
        order = torch.argsort(group, stable=True)
        position = torch.empty_like(order, dtype=torch.int32)
        position[order] = torch.arange(
            order.numel(), dtype=torch.int32, device=order.device
        )
        sizes = torch.bincount(group.long(), minlength=num_groups)
        return cls(order, position, tuple(sizes.tolist()))


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows of one width: words, zero points and scales."""

    words: Tensor  # (num_rows, words per row) uint8; int16 at 16 bits; float32 at 32
    zero_point: Tensor | None  # (num_ranges,) float32 or bfloat16; None at 32 bits
    scale: Tensor | None
    rows_per_range: int
    bits: int

    @property
    def nbytes(self) -> int:
        """Bytes of the three tensors, padding counted."""
        parts = (self.words, self.zero_point, self.scale)
        return sum(part.nbytes for part in parts if part is not None)

    def as_read(self) -> _Part:
        """What a kernel gets: one range for all rows becomes a view of one per row.

        So the number of rows, which is theirs, is no constant of the kernel.
        """
        zero_point, scale, per_range = self.zero_point, self.scale, self.rows_per_range
        if zero_point is not None and scale is not None and scale.shape[0] == 1:
            rows = self.words.shape[0]
            zero_point, scale, per_range = (
                zero_point.expand(rows),
                scale.expand(rows),
                1,
            )
        if self.bits == 32:
            per_range = 1
        return self.words, zero_point, scale, per_range, self.bits


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """Features of all nodes, (num_rows, num_features), of which rows are gathered."""

    parts: tuple[PackedRows, ...]  # group after group; empty groups are left out
    position: Tensor | None  # (num_rows,) int32 with several groups
    num_rows: int
    num_features: int
    compile: str = "auto"

    @classmethod
    def full(cls, x: Tensor) -> "FeatureStore":
        """Float rows as they are, half ones widened; reading is differentiable.

        Raises:
            TypeError: if x is of another type.
        """
        x = as_floats(x)
        part = PackedRows(x, None, None, max(x.shape[0], 1), 32)
        return cls((part,), None, x.shape[0], x.shape[1])

    @classmethod
    def pack(
        cls,
        x: Tensor,  # (num_rows, num_features) float32 or half
        bits: tuple[int, ...],  # of each group, each one of STORABLE_BITS
        packing: RowPacking,
        groups: RowGroups | None = None,  # None: one group of all rows
    ) -> "FeatureStore":
        """Round rows to nearest and pack them.

        NaN or infinity in a range, or a range that float32 cannot hold, makes all
        rows of that range NaN when read.

        Raises:
            ValueError: if bits cannot be stored or are not one per group, or x has no
                features.
            TypeError: if x is of another type.
        """
        if unknown := set(bits) - set(STORABLE_BITS):
            raise ValueError(f"bits must be among {STORABLE_BITS}, got {unknown}")
        _check_rows(x)
        num_groups = 1 if groups is None else len(groups.sizes)
        if len(bits) != num_groups:
            raise ValueError(
                f"bits must hold one width for each of {num_groups} groups, got {bits}"
            )
        x = as_float32(x.detach())
        if groups is None or len(set(bits)) == 1:
            parts: tuple[PackedRows, ...] = (pack_rows(x, bits[0], packing),)
        else:
            members = zip(groups.order.split(groups.sizes), bits, strict=True)
            parts = tuple(
                pack_rows(x.index_select(0, rows), width, packing)
                for rows, width in members
                if rows.numel()
            )
        position = groups.position if groups is not None and len(parts) > 1 else None
        return cls(parts, position, x.shape[0], x.shape[1], packing.compile)

    @property
    def nbytes(self) -> int:
        """Bytes of words, padding, zero points, scales, positions."""
        index = 0 if self.position is None else self.position.nbytes
        return index + sum(part.nbytes for part in self.parts)

    def gather(self, index: Tensor) -> Tensor:
        """Float rows of some nodes, (num_indices, num_features).

        Packed bytes are selected, then dequantised, in one kernel where it pays.
        """
        if len(self.parts) == 1 and self.parts[0].bits == 32:
            return self.parts[0].words.index_select(0, index)
        numel = index.numel() * self.num_features
        fused = fusion_pays(numel, index.device, self.compile)
        kernel = _gather_fused if fused else _gather
        parts = tuple(part.as_read() for part in self.parts)
        return kernel(parts, self.position, index, self.num_features)

    def rows(self, start: int, stop: int) -> Tensor:
        """Float rows of nodes start .. stop - 1, a view where they are kept so."""
        if len(self.parts) == 1 and self.parts[0].bits == 32:
            return self.parts[0].words[start:stop]
        device = self.parts[0].words.device
        return self.gather(torch.arange(start, stop, device=device))

    def decode(self) -> Tensor:
        """All rows as floats, (num_rows, num_features)."""
        return self.rows(0, self.num_rows)


def pack_rows(
    x: Tensor,  # (num_rows, num_features) float32 or half
    bits: int,
    packing: RowPacking,
) -> PackedRows:
    """Round rows of one width to nearest and pack them; 32 bits keep them.

    Raises:
        ValueError: if x has no features.
        TypeError: if x is of another type.
    """
    _check_rows(x)
    x = as_float32(x)
    rows_per_range = packing.rows_per_range(x.shape[0])
    if bits == 32:
        return PackedRows(x, None, None, rows_per_range, bits)
    if x.shape[0] == 0:
        kind = torch.int16 if bits == 16 else torch.uint8
        words = x.new_empty((0, count_words(x.shape[1], bits)), dtype=kind)
        none = x.new_empty(0, dtype=packing.metadata)
        return PackedRows(words, none, none.clone(), rows_per_range, bits)
    if packing.range == "node":
        packed = pack_by_row(x, bits, packing.metadata, packing.compile)
        return PackedRows(*packed, rows_per_range, bits)
    if packing.range == "support":
        grid = support_grid_of(x, bits, packing.metadata)
    else:
        grid = grid_of(*_ranges(x, packing), bits, packing.metadata)
    zero_point, scale, inverse_scale = grid
    first = _per_row(zero_point, rows_per_range, x.shape[0])
    inverse = _per_row(inverse_scale, rows_per_range, x.shape[0])
    words = encode(x, first, inverse, bits, packing.compile)
    zero_point, scale = zero_point.to(packing.metadata), scale.to(packing.metadata)
    return PackedRows(words, zero_point, scale, rows_per_range, bits)


def _check_rows(x: Tensor) -> None:
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(
            "x must be (num_rows, num_features) with at least one feature, "
            f"got {tuple(x.shape)}"
        )


def _per_row(values: Tensor, rows_per_range: int, num_rows: int) -> Tensor:
    """The value of each row's range, (num_rows, 1); a view where all share one."""
    if 1 < values.shape[0] < num_rows:
        values = values.repeat_interleave(rows_per_range)[:num_rows]
    return values.expand(num_rows)[:, None]


def _gather(
    parts: tuple[_Part, ...],
    position: Tensor | None,  # (num_rows,) int32
    index: Tensor,  # (num_indices,) int32 or int64
    num_features: int,
) -> Tensor:
    if position is not None:
        index = position.index_select(0, index)
    gathered = _gather_part(parts[0], index, num_features, position is not None)
    for part, following in itertools.pairwise(parts):
        index = index - part[0].shape[0]  # counted from the first row of `following`
        values = _gather_part(following, index, num_features, True)
        gathered = torch.where((index >= 0)[:, None], values, gathered)
    return gathered


def _gather_part(
    part: _Part, index: Tensor, num_features: int, may_lie_elsewhere: bool
) -> Tensor:
    words, zero_point, scale, rows_per_range, bits = part
    if may_lie_elsewhere:  # then another part overwrites what is read here
        index = torch.clamp(index, 0, words.shape[0] - 1)
    selected = words.index_select(0, index)
    if zero_point is None or scale is None:
        return selected
    owner = index // rows_per_range
    codes = unpack_codes(selected, num_features, bits)
    step = scale.index_select(0, owner).to(torch.float32)[:, None]
    first = zero_point.index_select(0, owner).to(torch.float32)[:, None]
    return values_of(codes, first, step)


_gather_fused = fuse(_gather, rows={"parts": 0, "position": 0, "index": 0})


def _ranges(x: Tensor, packing: RowPacking) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each range, (num_ranges,)."""
    smallest, largest = torch.aminmax(x, dim=1)
    if packing.range == "tensor":
        return smallest.amin(0, keepdim=True), largest.amax(0, keepdim=True)
    if packing.range == "mean_of_rows":
        return smallest.mean(0, keepdim=True), largest.mean(0, keepdim=True)
    size = packing.rows_per_range(x.shape[0])
    if missing := -x.shape[0] % size:
        smallest = torch.cat([smallest, smallest[-1:].expand(missing)])
        largest = torch.cat([largest, largest[-1:].expand(missing)])
    return smallest.view(-1, size).amin(dim=1), largest.view(-1, size).amax(dim=1)
