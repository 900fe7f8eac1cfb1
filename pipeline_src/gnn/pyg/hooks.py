"""What hooks keep in place of the tensors that autograd saves.

quantized_hooks stands for GACT (Liu et al., ICML 2022) as its code has it: blocks of
256 values, random rounding, parameters passed through by their address. It is given
two things that GACT leaves off: a tensor that several operations save is kept once,
and the aggregated features of the graph are compressed though they have no gradient.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import WeakTensorKeyDictionary

from pipeline_src.quant.bitmask import pack_mask
from pipeline_src.quant.blockwise import compress_blocks, decompress_blocks
from pipeline_src.quant.references import Reference, check_unchanged, watch

HOOK_BLOCK_SIZE = 256  # values; group_size of GACT
# Smaller tensors, such as the statistics of BatchNorm, stay as they are.
HOOK_MIN_NUMEL = 1024


@dataclass(frozen=True, eq=False)
class SavedTensor:
    """What stands for a saved tensor; shared by all operations that saved it."""

    content: Any
    version: int  # of the tensor that was saved
    same: tuple[Reference, ...]  # to it, where its own memory is in the content


def keep_instead(
    pack: Callable[[Tensor], Any],
    unpack: Callable[[Any], Tensor],
    resident: dict[int, str],  # addresses that are alive anyway, and names for them
) -> saved_tensors_hooks:
    """Autograd keeps pack(tensor) of each saved tensor that is not resident.

    Under hooks autograd does not look whether a tensor was changed since; what is
    kept as it is, is watched here.
    """
    # The tensor dies with its last user, and the packed one must die with the graph.
    seen = WeakTensorKeyDictionary()

    def hook(tensor: Tensor) -> Any:
        if tensor.layout != torch.strided:
            return watch([("the aggregation's matrix", tensor)])
        if tensor.data_ptr() in resident:
            return watch([(resident[tensor.data_ptr()], tensor)])
        known = seen[tensor]() if tensor in seen else None
        if known is None or known.version != tensor._version:
            content = pack(tensor)
            parts = content if isinstance(content, tuple) else (content,)
            same = any(
                isinstance(part, Tensor) and part.data_ptr() == tensor.data_ptr()
                for part in parts
            )
            watched = watch([("an activation", tensor)]) if same else ()
            known = SavedTensor(content, tensor._version, watched)
            seen[tensor] = weakref.ref(known)
        return known

    def unhook(kept: SavedTensor | tuple[Reference]) -> Tensor:
        if isinstance(kept, SavedTensor):
            check_unchanged(kept.same)
            return unpack(kept.content)
        check_unchanged(kept)
        return kept[0].tensor

    return saved_tensors_hooks(hook, unhook)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Codes of a float32 tensor, or the bits of a mask."""

    shape: torch.Size
    bits: int  # 1 is a mask
    packed: Tensor
    zero_point: Tensor | None = None
    scale: Tensor | None = None


def quantize_saved(
    tensor: Tensor, bits: int, generator: torch.Generator
) -> QuantizedTensor | Tensor:
    """Codes in blocks of 256 values; a mask at one bit; small tensors as they are."""
    if tensor.numel() < HOOK_MIN_NUMEL:
        return tensor
    if tensor.dtype == torch.bool:
        return QuantizedTensor(tensor.shape, 1, pack_mask(tensor))
    if tensor.dtype != torch.float32:
        return tensor
    # Drawn on the CPU, so that no device is waited for.
    draw = int(torch.randint(-(2**31), 2**31, (), generator=generator))
    seed = torch.full((), draw, dtype=torch.int32, device=tensor.device)
    codes = compress_blocks(tensor, seed, bits, HOOK_BLOCK_SIZE)
    return QuantizedTensor(tensor.shape, bits, *codes)


def dequantize_saved(kept: QuantizedTensor | Tensor) -> Tensor:
    """The tensor that autograd gets in backward."""
    if isinstance(kept, Tensor):
        return kept
    if kept.zero_point is None or kept.scale is None:
        shift = torch.arange(8, dtype=torch.uint8, device=kept.packed.device)
        mask = (kept.packed >> shift[:, None]) & 1
        return mask.view(-1)[: kept.shape.numel()].view(kept.shape).to(torch.bool)
    return decompress_blocks(
        kept.packed, kept.zero_point, kept.scale, kept.shape, kept.bits
    )
