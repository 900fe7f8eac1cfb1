"""Calls to time: kernels and moves of the same tensor, buffer by buffer."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from pipeline_src.measuring.gpu.clock import Timed, buffers_beyond_cache
from pipeline_src.measuring.rivals import RIVALS, Kernels, rival_kernels
from pipeline_src.quant.blockwise import compress_blocks, decompress_blocks
from pipeline_src.quant.rectified import (
    Normalization,
    RectifiedCoder,
    RectifiedSetting,
    encode,
)

IMPLEMENTATIONS = ("compiled", "plain", *RIVALS)
OPERATIONS = ("compress", "decompress")
LEAN_OPERATIONS = ("encode", "gradient_sums", "backpropagate", "output")
MOVES = ("copy", "clone")


def buffers_of(shape: tuple[int, int], device: torch.device) -> list[Tensor]:
    """Normal values, and the same in other orders, as many as defeat the cache."""
    generator = torch.Generator().manual_seed(0)
    number = buffers_beyond_cache(4 * shape[0] * shape[1], device)
    first = torch.randn(shape, generator=generator).to(device)
    return [first, *(first.roll(k, 0) for k in range(1, number))]


def moves_of(buffers: Sequence[Tensor]) -> list[Timed]:
    """Into memory that is there, and into fresh memory, in the order of MOVES."""
    target = torch.empty_like(buffers[0])
    calls: dict[str, list[Callable[[], object]]] = {
        "copy": [partial(target.copy_, x) for x in buffers],
        "clone": [x.clone for x in buffers],
    }
    labels = {"implementation": "torch"}
    return [
        Timed({**labels, "operation": name}, calls[name], 2 * target.nbytes)
        for name in MOVES
    ]


def lean_kernels_on(
    buffers: Sequence[Tensor], bits: int, rows_per_block: int, compiled: bool
) -> Iterator[Timed]:
    """Each of LEAN_OPERATIONS, as a training step calls it; the labels as below.

    Two of them overwrite what they are given, so they are given copies, and a weight
    under which values grow no further from call to call.
    """
    width, device = buffers[0].shape[1], buffers[0].device
    num_rows = len(buffers[0]) // rows_per_block * rows_per_block
    rows = [x[:num_rows].clone() for x in buffers]
    one = torch.ones(width, device=device)
    dropout = torch.tensor(0.5, device=device)
    norm = Normalization(0 * one, one, 0.5 * one, 0 * one)
    coder = RectifiedCoder(bits, rows_per_block)
    means = torch.stack([-one, one]) if coder.needs_means else None
    setting = RectifiedSetting(coder, norm, dropout, means, compiled)
    seed = torch.zeros((), dtype=torch.int32, device=device)
    codes = [encode(x, seed, setting) for x in rows]
    sums, share = torch.zeros(2, width, device=device), torch.zeros((), device=device)
    calls: dict[str, list[Callable[[], object]]] = {
        "encode": [partial(encode, x, seed, setting) for x in rows],
        "gradient_sums": [
            partial(one.gradient_sums, x) for one, x in zip(codes, rows, strict=True)
        ],
        "backpropagate": [
            partial(one.backpropagate, x, sums, share)
            for one, x in zip(codes, rows, strict=True)
        ],
        "output": [partial(one.output, slice(0, num_rows)) for one in codes],
    }
    ends = codes[0].ends
    kept = codes[0].packed.nbytes + (0 if ends is None else ends.nbytes)
    overwriting = ("encode", "backpropagate")
    labels = {
        "implementation": "compiled" if compiled else "plain",
        "block_size": rows_per_block * width,
        "kept_bytes": kept,
    }
    for name in LEAN_OPERATIONS:
        moved = rows[0].nbytes * (2 if name in overwriting else 1)
        yield Timed({**labels, "operation": name}, calls[name], moved + kept)


def kernels_on(
    buffers: Sequence[Tensor], bits: int, block_size: int, compiled: bool
) -> Iterator[Timed]:
    """Each of IMPLEMENTATIONS that is there, for each of OPERATIONS.

    The labels are implementation, operation and the bytes of what is kept.
    """
    for implementation in IMPLEMENTATIONS:
        make = _maker(implementation, bits, block_size, compiled)
        pairs = [kernels for x in buffers if (kernels := make(x)) is not None]
        if len(pairs) < len(buffers):
            continue
        kept = [kernels.compress() for kernels in pairs]
        kept_bytes = sum(part.nbytes for part in pairs[0].kept_tensors(kept[0]))
        labels = {"implementation": implementation, "kept_bytes": kept_bytes}
        calls: dict[str, list[Callable[[], object]]] = {
            "compress": [kernels.compress for kernels in pairs],
            "decompress": [partial(pairs[0].decompress, one) for one in kept],
        }
        nbytes = buffers[0].nbytes + kept_bytes
        for operation in OPERATIONS:
            yield Timed({**labels, "operation": operation}, calls[operation], nbytes)


def _maker(
    implementation: str, bits: int, block_size: int, compiled: bool
) -> Callable[[Tensor], Kernels | None]:
    if implementation in RIVALS:
        return lambda x: rival_kernels(implementation, x, bits, block_size, compiled)
    if implementation == "compiled" and not compiled:
        return lambda x: None
    compile = "true" if implementation == "compiled" else "false"
    return lambda x: _own_kernels(x, bits, block_size, compile)


def _own_kernels(x: Tensor, bits: int, block_size: int, compile: str) -> Kernels:
    seed = torch.zeros((), dtype=torch.int32, device=x.device)
    return Kernels(
        lambda: compress_blocks(x, seed, bits, block_size, compile=compile),
        lambda kept: decompress_blocks(
            kept[0], kept[1], kept[2], x.shape, bits, compile=compile
        ),
        tuple,
    )
