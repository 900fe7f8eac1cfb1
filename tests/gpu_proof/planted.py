"""Kernels with a fault each, of the kinds that once were in the library.

They are compiled as the library's are. `__wrapped__` is what they should compute.
"""

from typing import Any

import torch
from torch import Tensor

from pipeline_src.quant.fusion import fuse
from tests.gpu_proof.cases import Case, Size

_GOLDEN = 0x9E3779B9 - 2**32  # of the hash of positions


def _overflow(x: Tensor) -> Tensor:
    """Hash columns in steps of two: twice the constant leaves int32."""
    columns = torch.arange(64, dtype=torch.int32, device=x.device)
    noise = ((columns * 2) * _GOLDEN) & 0xFFFF
    return (x.amax(dim=1, keepdim=True) - x) * noise.to(torch.float32)


def _float64(x: Tensor) -> Tensor:
    """Multiply by a constant in double precision."""
    return (x.to(torch.float64) * 0.1).to(torch.float32)


def _masked(x: Tensor) -> Tensor:
    return torch.where(x > 0, x * 2.0, 0.0)


def _lost_mask(x: Tensor) -> Tensor:
    """As _masked, without the mask."""
    return x * 2.0


def _extra_copy(x: Tensor) -> None:
    """Turn rows round in place, by way of a second tensor."""
    x.copy_(x.flip(0))


overflow = fuse(_overflow, rows={"x": 0})
float64 = fuse(_float64, rows={"x": 0})
lost_mask = fuse(_lost_mask, rows={"x": 0})
lost_mask.__wrapped__ = _masked  # type: ignore[attr-defined]
extra_copy = fuse(_extra_copy, rows={"x": 0})


def _operation(name: str) -> Any:
    def operate(device: str, size: Size) -> Any:
        return globals()[name](torch.randn(size, device=device))

    return operate


# Fault -> the kernel, and what the proof says of it.
PLANTED = {
    "overflow": ("_overflow", "out of range for type int32"),
    "float64": ("_float64", "float64 is"),
    "lost_mask": ("_lost_mask", "result 0 differs in"),
    "extra_copy": ("_extra_copy", "bytes_ratio is"),
}


def planted_cases() -> dict[str, Case]:
    """By name."""
    cases = {}
    for name, (kernel, _) in PLANTED.items():
        title = f"planted {name}"
        place = f"planted.{kernel}"
        # Not more than one number of rows: what is planted is no second module.
        large, more = (4096, 64), ((24, 64),)
        cases[title] = Case(title, place, _operation(name), large, more)
    return cases
