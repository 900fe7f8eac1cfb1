"""Block-wise quantisation by other packages, to stand beside our own kernels.

torchao and bitsandbytes are no dependencies: where a package is not installed, does
not load, or has no kernel for a width, a block size or a device, there is nothing to
measure. What they do differs from ours in two ways that favour them: they round to
nearest, so they draw no noise, and they have no 1 and 2 bits.

* torchao: zero point and scale per block (`quantize_affine`), meant to be compiled; it
  keeps a 4-bit code in a byte of its own.
* bitsandbytes: largest absolute value per block and a table of 256 or 16 levels.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

log = logging.getLogger(__name__)

RIVALS = ("torchao", "bitsandbytes")
RIVAL_BITS = (4, 8)


@dataclass(frozen=True)
class Kernels:
    """A pair of operations on one tensor at one width and block size.

    Args:
        compress: from nothing (the tensor is bound) to what is kept.
        decompress: from what is kept to values.
        kept_tensors: the tensors in what is kept, metadata included.
    """

    compress: Callable[[], Any]
    decompress: Callable[[Any], Tensor]
    kept_tensors: Callable[[Any], tuple[Tensor, ...]]


def rival_kernels(
    package: str,
    x: Tensor,  # float32, any shape
    bits: int,
    block_size: int,
    compiled: bool,
) -> Kernels | None:
    """The package's kernels for x, tried once; None where it has none.

    Args:
        package: one of RIVALS.
        x: what is compressed.
        bits: width of a code.
        block_size: values that share metadata.
        compiled: whether kernels made to be compiled may be.
    """
    if bits not in RIVAL_BITS or find_spec(package) is None:
        return None
    try:
        if package == "torchao":
            kernels = _torchao_kernels(x, bits, block_size, compiled)
        else:
            kernels = _bitsandbytes_kernels(x, bits, block_size)
        kernels.decompress(kernels.compress())
    # A package built for another torch or device fails in ways of its own.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        log.warning("%s, %d bits, is not measured: %s", package, bits, reason)
        return None
    return kernels


def _torchao_kernels(x: Tensor, bits: int, block_size: int, compiled: bool) -> Kernels:
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    # It takes whole blocks only; the padding is not timed.
    flat = x.reshape(-1)
    blocks = pad(flat, (0, -flat.numel() % block_size)).view(-1, block_size)
    block, levels = (1, block_size), (torch.uint8, 0, 2**bits - 1)

    def compress(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale, zero_point = choose_qparams_affine(
            blocks, MappingType.ASYMMETRIC, block, *levels
        )
        codes = quantize_affine(blocks, block, scale, zero_point, *levels)
        return codes, scale, zero_point

    def decompress(kept: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return dequantize_affine(kept[0], block, kept[1], kept[2], *levels)

    if compiled:
        compress, decompress = torch.compile(compress), torch.compile(decompress)
    return Kernels(lambda: compress(blocks), decompress, tuple)


def _bitsandbytes_kernels(x: Tensor, bits: int, block_size: int) -> Kernels:
    from bitsandbytes import functional

    if bits == 4:
        return Kernels(
            lambda: functional.quantize_4bit(x, blocksize=block_size, quant_type="nf4"),
            lambda kept: functional.dequantize_4bit(*kept),
            lambda kept: (kept[0], kept[1].absmax),
        )
    return Kernels(
        lambda: functional.quantize_blockwise(x, blocksize=block_size),
        lambda kept: functional.dequantize_blockwise(*kept),
        lambda kept: (kept[0], kept[1].absmax),
    )
