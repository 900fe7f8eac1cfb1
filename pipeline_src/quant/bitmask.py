"""Boolean masks at one bit per value.

PyTorch spends a byte on each boolean, and keeps a whole float tensor where ReLU needs
only signs. Bit j of byte w stands for value j * num_bytes + w of the flattened mask:
eight contiguous streams, which vectorize on a CPU and coalesce on a GPU.
"""

import torch
from torch import Tensor

from pipeline_src.quant.dtypes import as_float32, check_dtype
from pipeline_src.quant.fusion import fuse, fusion_pays

_BITS = 8


def pack_mask(
    mask: Tensor,  # bool, any shape
    compile: str = "auto",
) -> Tensor:
    """Pack to uint8, (ceil(numel / 8),); the missing bits of the last byte are 0.

    Raises:
        TypeError: if the mask is not bool.
    """
    check_dtype(mask, "mask", (torch.bool,))
    flat = mask.reshape(-1)
    if missing := -flat.numel() % _BITS:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    fused = fusion_pays(flat.numel(), flat.device, compile)
    streams = flat.view(torch.uint8).view(_BITS, -1)
    aligned = flat.storage_offset() % 4 == 0
    if aligned and streams.shape[1] % 4 == 0 and flat.numel():
        streams = streams.view(torch.int32)  # a byte alone is slow to shift
    return (_pack_fused if fused else _pack)(streams).view(torch.uint8)


def mask_gradient(
    gradient: Tensor,  # float32 or half, the shape of the mask
    packed: Tensor,  # (ceil(numel / 8),) uint8
    factor: float = 1.0,
    compile: str = "auto",
) -> Tensor:
    """Gradient times mask times factor, without unpacking the mask to memory.

    Raises:
        TypeError: if the gradient is of another type.
    """
    flat = as_float32(gradient, "gradient").reshape(-1)
    if missing := -flat.numel() % _BITS:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    fused = fusion_pays(flat.numel(), flat.device, compile)
    # A tensor, so that one compilation serves every factor.
    scalar = torch.full((), factor, dtype=flat.dtype, device=flat.device)
    masked = (_mask_fused if fused else _mask)(flat.view(_BITS, -1), packed, scalar)
    masked = masked.view(-1)[: gradient.numel()].view(gradient.shape)
    return masked.to(gradient.dtype)


def unpack_mask(
    packed: Tensor,  # (ceil(numel / 8),) uint8
    shape: torch.Size,
) -> Tensor:
    """The mask as bool, of the shape given."""
    shift = torch.arange(_BITS, dtype=torch.uint8, device=packed.device)
    mask = ((packed >> shift[:, None]) & 1).view(-1)[: shape.numel()]
    return mask.view(shape).to(torch.bool)


def _pack(
    streams: Tensor,  # (8, words): bytes that are 0 or 1, one or four in a word
) -> Tensor:
    packed = streams[0]
    for j in range(1, _BITS):
        packed = packed | (streams[j] << j)
    return packed


def _mask(gradient: Tensor, packed: Tensor, factor: Tensor) -> Tensor:
    shift = torch.arange(_BITS, dtype=torch.int32, device=packed.device).view(-1, 1)
    kept = (packed.to(torch.int32) >> shift) & 1
    return torch.where(kept == 1, gradient * factor, 0.0)


_pack_fused = fuse(_pack, rows={"streams": 1})
_mask_fused = fuse(_mask, rows={"gradient": 1, "packed": 0})
