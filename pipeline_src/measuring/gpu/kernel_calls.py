"""Calls to time: block-wise kernels and moves of the same tensor, buffer by buffer."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from pipeline_src.measuring.gpu.clock import Timed, buffers_beyond_cache
from pipeline_src.measuring.rivals import RIVALS, Kernels, rival_kernels
from pipeline_src.quant.blockwise import compress_blocks, decompress_blocks

IMPLEMENTATIONS = ("compiled", "plain", *RIVALS)
OPERATIONS = ("compress", "decompress")
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
