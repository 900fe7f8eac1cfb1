"""Each kernel at each width, as the library's own operations call it.

Sizes: `large` is what training on ogbn-arxiv gives a kernel at once; its module is the
one that is compiled and counted. `more` and `odd` are small. Those of `more` differ
from `large` in rows alone, so one module is to serve them all; the first of them and
all of `odd` run in the interpreter, which is slow.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline_src.quant.bitmask import mask_gradient, pack_mask
from pipeline_src.quant.blockwise import (
    PACKABLE_BITS,
    blocks_per_packet,
    compress_blocks,
    decompress_blocks,
)
from pipeline_src.quant.feature_store import (
    FeatureStore,
    PackedRows,
    RowPacking,
    pack_rows,
)
from pipeline_src.quant.projection import projection
from pipeline_src.quant.rectified import (
    RECTIFIED_BITS,
    Normalization,
    RectifiedCoder,
    RectifiedCodes,
    RectifiedSetting,
    encode,
    encode_beside,
    side_means,
)
from pipeline_src.quant.row_codes import count_words
from pipeline_src.quant.row_codes import encode as encode_rows
from pipeline_src.quant.segment_store import PackedSegments

Size = tuple[int, ...]

NODES = 169_343  # of ogbn-arxiv
EDGES = 2_315_598  # of it, both directions
ROWS_PER_BLOCK = 8
EVEN_BLOCK, UNEVEN_BLOCK = 64, 63  # 63 values fill no whole words below 8 bits
CODE_BITS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Case:
    """An operation of the library, and the kernel of it that is looked at."""

    name: str
    kernel: str
    operate: Callable[[str, Size], Any]  # device, size
    large: Size
    more: tuple[Size, ...]  # of the same widths: one module is to serve them too
    odd: tuple[Size, ...] = ()  # of other widths


def uneven(num_levels: int, device: str) -> Tensor:
    """Edges of unequal bins, in bin units."""
    edges = torch.arange(num_levels, dtype=torch.float32, device=device)
    inner = (edges > 0) & (edges < num_levels - 1)
    return edges + 0.3 * torch.sin(1.7 * edges) * inner


def _seed(device: str) -> Tensor:
    return torch.full((), 7, dtype=torch.int32, device=device)


def _bytes(shape: Size, device: str) -> Tensor:
    return torch.randint(0, 256, shape, device=device).to(torch.uint8)


# --- blockwise ------------------------------------------------------------------------


def _flat(bits: int, block_size: int) -> dict[str, Any]:
    """Few packets, and more than the four that are compiled: interpreting is slow."""
    packet = blocks_per_packet(bits, block_size) * block_size
    return {"large": (NODES * 32,), "more": ((5 * packet + 7,), (9 * packet + 1,))}


def _compress(bits: int, block_size: int, is_uneven: bool) -> Any:
    def operate(device: str, size: Size) -> Any:
        x = torch.randn(size, device=device)
        x[:block_size] = 1.5  # a block of no width
        bounds = uneven(2**bits, device) if is_uneven else None
        return compress_blocks(x, _seed(device), bits, block_size, bounds, "true")

    return operate


def _decompress(bits: int, block_size: int, is_uneven: bool) -> Any:
    def operate(device: str, size: Size) -> Any:
        in_packet = blocks_per_packet(bits, block_size)
        per_packet = in_packet * block_size
        packets = -(-size[0] // per_packet)
        packed = _bytes((packets, per_packet * bits // 8), device)
        blocks = (packets * in_packet,)
        zero_point = torch.randn(blocks, device=device).to(torch.bfloat16)
        scale = torch.rand(blocks, device=device).to(torch.bfloat16)
        bounds = uneven(2**bits, device) if is_uneven else None
        shape = torch.Size(size)
        return decompress_blocks(packed, zero_point, scale, shape, bits, bounds, "true")

    return operate


def _blockwise() -> Iterator[Case]:
    operations = {"compress": _compress, "decompress": _decompress}
    for name, operation in operations.items():
        kernel = f"blockwise._{name}"
        for bits in PACKABLE_BITS:
            for block in (EVEN_BLOCK, UNEVEN_BLOCK):
                for is_uneven in (False, True):
                    kind = " uneven" if is_uneven else ""
                    title = f"{name} {bits} bits block {block}{kind}"
                    operate = operation(bits, block, is_uneven)
                    yield Case(title, kernel, operate, **_flat(bits, block))
    for block in (252, 2048):
        title = f"compress 2 bits block {block}"
        operate = _compress(2, block, False)
        yield Case(title, "blockwise._compress", operate, **_flat(2, block))
    operate = _compress(2, EVEN_BLOCK, False)
    yield Case("row keys", "noise._keys", operate, **_flat(2, EVEN_BLOCK))


# --- rectified ------------------------------------------------------------------------

_ROWS: dict[str, Any] = {
    "large": (32_768, 256),
    "more": ((16, 256), (24, 256)),
    "odd": ((24, 37),),
}


def _normalization(width: int, device: str) -> Normalization:
    mean, weight, bias = (torch.randn(width, device=device) for _ in range(3))
    return Normalization(mean, torch.rand(width, device=device) + 0.5, weight, bias)


def _setting(bits: int, width: int, device: str) -> RectifiedSetting:
    coder = RectifiedCoder(bits, ROWS_PER_BLOCK)
    means = torch.randn(2, width, device=device) if coder.needs_means else None
    dropout = torch.full((), 0.5, device=device)
    return RectifiedSetting(coder, _normalization(width, device), dropout, means, True)


def _kept(size: Size, setting: RectifiedSetting, device: str) -> RectifiedCodes:
    """Codes and ends of blocks."""
    (rows, width), bits = size, setting.coder.bits
    blocks = rows // ROWS_PER_BLOCK
    packed = _bytes((blocks, ROWS_PER_BLOCK * bits // 8, width), device)
    ends = None
    if setting.coder.keeps_ends:
        ends = torch.rand(blocks, 2, device=device) + 1.0
        ends[:, 0] *= -1.0
        ends = ends.to(torch.bfloat16).view(torch.int32).view(-1)
    return RectifiedCodes(packed, ends, _seed(device), setting)


def _encode(bits: int) -> Any:
    def operate(device: str, size: Size) -> Any:
        y = torch.randn(size, device=device)
        return encode(y, _seed(device), _setting(bits, size[1], device))

    return operate


def _encode_beside(bits: int) -> Any:
    def operate(device: str, size: Size) -> Any:
        y = torch.randn(size, device=device)
        setting = _setting(bits, size[1], device)
        return encode_beside(y, y.relu(), _seed(device), setting)

    return operate


def _reading(bits: int, read: Callable[..., Any]) -> Any:
    def operate(device: str, size: Size) -> Any:
        codes = _kept(size, _setting(bits, size[1], device), device)
        return read(codes, torch.randn(size, device=device))

    return operate


def _output(codes: RectifiedCodes, gradient: Tensor) -> Any:
    return codes.output(slice(0, len(gradient)))


def _normalized(codes: RectifiedCodes, gradient: Tensor) -> Any:
    return codes.normalized(slice(0, len(gradient)))


def _gradient_sums(codes: RectifiedCodes, gradient: Tensor) -> Any:
    return codes.gradient_sums(gradient)


def _backpropagate(codes: RectifiedCodes, gradient: Tensor) -> None:
    sums = torch.randn(2, gradient.shape[1], device=gradient.device)
    codes.backpropagate(gradient, sums, torch.rand((), device=gradient.device))


def _active_sums(device: str, size: Size) -> Any:
    y = torch.randn(size, device=device)
    return side_means(y, size[0], _normalization(size[1], device), True)


def _rectified() -> Iterator[Case]:
    readers = {
        "output": _output,
        "normalized": _normalized,
        "gradient_sums": _gradient_sums,
        "backpropagate": _backpropagate,
    }
    for bits in RECTIFIED_BITS:
        kernel = "rectified._encode"
        yield Case(f"rectify {bits} bits", kernel, _encode(bits), **_ROWS)
        beside = f"rectify beside {bits} bits"
        yield Case(beside, kernel, _encode_beside(bits), **_ROWS)
        for name, read in readers.items():
            yield Case(
                f"{name} {bits} bits",
                f"rectified._{name}",
                _reading(bits, read),
                **_ROWS,
            )
    yield Case("active_sums", "rectified._active_sums", _active_sums, **_ROWS)


# --- masks, rows, segments ------------------------------------------------------------


def _pack(device: str, size: Size) -> Any:
    return pack_mask(torch.randn(size, device=device) > 0, "true")


def _mask(device: str, size: Size) -> Any:
    packed = _bytes((-(-size[0] // 8),), device)
    return mask_gradient(torch.randn(size, device=device), packed, 2.0, "true")


def _bitmask() -> Iterator[Case]:
    # Bytes, where their number is no multiple of four, are tensors of another type.
    words: dict[str, Any] = {"large": (NODES * 256,), "more": ((1024,), (4096,))}
    yield Case("pack_mask", "bitmask._pack", _pack, **words)
    single: dict[str, Any] = {"large": (NODES * 256 + 8,), "more": ((1001,), (4097,))}
    yield Case("pack_mask of bytes", "bitmask._pack", _pack, **single)
    flat: dict[str, Any] = {"large": (NODES * 256,), "more": ((1001,), (4097,))}
    yield Case("mask_gradient", "bitmask._mask", _mask, **flat)


def _encode_rows(bits: int, marked: bool) -> Any:
    def operate(device: str, size: Size) -> Any:
        x = torch.randn(size, device=device)
        if marked:  # bags of words: code 0 is zero alone
            x = torch.where(x > 0, x, 0.0)
        first, last = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
        inverse = (2**bits - 1) / (last - first)
        return encode_rows(x, first, -inverse if marked else inverse, bits, "true")

    return operate


def _encode_segments(bits: int) -> Any:
    """As pack_segments does: few rows of any length, values of a node together."""

    def operate(device: str, size: Size) -> Any:
        x = torch.randn(size, device=device).T
        first, last = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
        inverse = (2**bits - 1) / (last - first)
        grid = (one.expand(x.shape).T.contiguous().T for one in (first, inverse))
        return encode_rows(x, *grid, bits, "true", few_rows=True)

    return operate


def _pack_rows(bits: int) -> Any:
    def operate(device: str, size: Size) -> Any:
        x = torch.randn(size, device=device)
        return pack_rows(x, bits, RowPacking(compile="true"))

    return operate


def _words(rows: int, width: int, bits: int, device: str) -> Tensor:
    if bits == 32:
        return torch.randn(rows, width, device=device)
    shape = (rows, count_words(width, bits))
    if bits == 16:
        words = torch.randint(-(2**15), 2**15, shape, device=device)
        return words.to(torch.int16)
    return _bytes(shape, device)


def _gather(widths: tuple[int, ...]) -> Any:
    def operate(device: str, size: Size) -> Any:
        rows, width, num_indices = size
        share = rows // len(widths)
        counts = [share] * (len(widths) - 1)
        counts.append(rows - sum(counts))
        parts = []
        for bits, count in zip(widths, counts, strict=True):
            grid: list[Tensor | None] = [None, None]
            if bits != 32:
                grid = [torch.randn(count, device=device) for _ in range(2)]
            parts.append(PackedRows(_words(count, width, bits, device), *grid, 1, bits))
        position = None
        if len(widths) > 1:
            position = torch.randperm(rows, device=device).to(torch.int32)
        store = FeatureStore(tuple(parts), position, rows, width, "true")
        return store.gather(torch.randint(0, rows, (num_indices,), device=device))

    return operate


def _decode_segments(bits: int) -> Any:
    def operate(device: str, size: Size) -> Any:
        values, heads, segments = size
        words = _words(heads, values, bits, device).T.contiguous().T
        grid = [torch.rand(segments, heads, device=device) for _ in range(2)]
        packed = PackedSegments(words, *grid, values, bits, "true")
        return packed.decode(torch.randint(0, segments, (values,), device=device))

    return operate


def _rows_and_segments() -> Iterator[Case]:
    rows: dict[str, Any] = {
        "large": (NODES, 128),
        "more": ((5, 128), (32, 128)),
        "odd": ((3, 37),),
    }
    gathered: dict[str, Any] = {
        "large": (NODES, 128, NODES),
        "more": ((20, 128, 11), (31, 128, 50)),
        "odd": ((31, 37, 31),),
    }
    segments: dict[str, Any] = {
        "large": (EDGES, 8, NODES),
        "more": ((101, 8, 7), (64, 8, 64)),
        "odd": ((101, 3, 7),),
    }
    for bits in CODE_BITS:
        kinds = (False, True) if bits == 2 else (False,)
        for marked in kinds:
            title = f"encode_rows {bits} bits" + (" marked" if marked else "")
            operate = _encode_rows(bits, marked)
            yield Case(title, "row_codes._encode", operate, **rows)
    for bits in CODE_BITS:
        title = f"pack_rows {bits} bits"
        yield Case(title, "row_codes._pack", _pack_rows(bits), **rows)
    for widths in ((1,), (2,), (4,), (8,), (16,), (2, 4, 8), (4, 32)):
        title = f"gather {'+'.join(map(str, widths))} bits"
        yield Case(title, "feature_store._gather", _gather(widths), **gathered)
    for bits in CODE_BITS:
        title = f"encode_segments {bits} bits"
        few: dict[str, Any] = {"large": (EDGES, 8), "more": ((101, 8), (64, 8))}
        yield Case(title, "row_codes._encode_few", _encode_segments(bits), **few)
        title = f"decode_segments {bits} bits"
        operate = _decode_segments(bits)
        yield Case(title, "segment_store._decode", operate, **segments)
    alike: dict[str, Any] = {
        "large": (EDGES, 8, 1),
        "more": ((101, 8, 1), (64, 8, 1)),
        "odd": ((101, 3, 1),),
    }
    for bits in (2, 16):
        title = f"decode_segments alike {bits} bits"
        operate = _decode_segments(bits)
        yield Case(title, "segment_store._decode_alike", operate, **alike)


def _project(device: str, size: Size) -> Any:
    return projection(_seed(device), *size, "true")


def _projection() -> Iterator[Case]:
    sizes: dict[str, Any] = {"large": (256, 32), "more": (), "odd": ((24, 7),)}
    yield Case("projection", "projection._entries", _project, **sizes)


def all_cases() -> dict[str, Case]:
    """By name."""
    makers = (_blockwise, _rectified, _bitmask, _rows_and_segments, _projection)
    cases = [case for maker in makers for case in maker()]
    named = {case.name: case for case in cases}
    assert len(named) == len(cases), "names of cases repeat"
    return named
