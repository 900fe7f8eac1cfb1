"""Whether lean's kernels give on a GPU the bits that plain ones give on a CPU.

All that they do to a value is integer arithmetic and sums, products, quotients and
roots that round once each (quant/fusion.py; the proof without a GPU reads that in the
machine code). So codes, ends of blocks, h, its estimate and the gradient of y are the
same bits on every device, and one that differs is wrong.

Sums over nodes are the same only for 8 rows at a time. Their total is added up in the
order of the device. Two orders of adding n terms t lie within

    2 n u sum|t|,        u = 2**-24,

of each other, since n - 1 additions round by at most u of what is added so far.
"""

from typing import Any

import torch
from torch import Tensor

from pipeline_src.measuring.gpu.clock import Deadline
from pipeline_src.measuring.gpu.results import Rows
from pipeline_src.quant.rectified import (
    Normalization,
    RectifiedCoder,
    RectifiedCodes,
    RectifiedSetting,
    encode,
    side_means,
)

COLUMNS = (
    *("device", "bits", "rows_per_block", "values"),
    *("differing_codes", "differing_ends", "differing_h"),
    *("differing_output", "differing_gradient", "sums_difference_over_bound"),
)
SETTINGS = (2, 4, 8, 1)  # bits
ROWS_PER_BLOCK = 8
ARXIV_RUN = (32_768, 128)
TINY = (160, 16)
EXACT = ("codes", "ends", "h", "output", "gradient")  # results that are the same bits
_DROPOUT = 0.3
_ROUNDING = 2.0**-24
_CPU = torch.device("cpu")


def compare_devices(
    rows: Rows,
    name: str,
    device: torch.device,
    deadline: Deadline,
    *,
    shape: tuple[int, int] = ARXIV_RUN,  # rows, a multiple of ROWS_PER_BLOCK; features
    compile: bool = True,
) -> list[str]:
    """Compare each number of bits in turn; returns those that the deadline left out."""
    settings = list(SETTINGS)
    while settings and deadline.left() > 0:
        bits = settings.pop(0)
        found = compare_lean(bits, shape, device, compile)
        rows.add({"device": name, **found})
    return [f"{bits} bits" for bits in settings]


def compare_lean(
    bits: int, shape: tuple[int, int], device: torch.device, compile: bool
) -> dict[str, Any]:
    """Counts of values that differ between the CPU's plain kernels and a device's."""
    generator = torch.Generator().manual_seed(7)
    y, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    drawn = torch.randn(5, shape[1], generator=generator)
    norm = Normalization(drawn[0], drawn[1].abs() + 0.5, drawn[2], drawn[3])
    codes, here = _results(bits, y, gradient, norm, drawn[3:], _CPU, False)
    _, there = _results(bits, y, gradient, norm, drawn[3:], device, compile)
    counts = {f"differing_{one}": _count(here[one], there[one]) for one in EXACT}
    passed = gradient.double().abs() * (here["h"] != 0) / (1 - _DROPOUT)
    estimates = codes.normalized(slice(0, len(y))).double()
    terms = torch.stack([passed, passed * estimates.abs()])
    bound = 2 * len(y) * _ROUNDING * terms.sum(dim=1)
    difference = (here["sums"].double() - there["sums"].double()).abs()
    over = torch.where(difference > 0, difference / bound, 0.0)
    return {
        "bits": bits,
        "rows_per_block": ROWS_PER_BLOCK,
        "values": y.numel(),
        **counts,
        "sums_difference_over_bound": float(over.max()),
    }


def _results(
    bits: int,
    y: Tensor,  # (rows, features) on the CPU
    gradient: Tensor,  # the same, of h
    normalization: Normalization,
    sums: Tensor,  # (2, features), as if of the gradient
    device: torch.device,
    compile: bool,
) -> tuple[RectifiedCodes, dict[str, Tensor]]:
    """Codes of rows on a device; all that lean's kernels make of them, on the CPU."""
    coder = RectifiedCoder(bits, ROWS_PER_BLOCK)
    means = None
    if coder.needs_means:  # sums, whose order is not what is compared here
        means = side_means(y, len(y), normalization, False).to(device)
    on_device = Normalization(*(one.to(device) for one in normalization))
    dropout = torch.tensor(_DROPOUT, device=device)
    setting = RectifiedSetting(coder, on_device, dropout, means, compile)
    h = y.to(device, copy=True)
    codes = encode(h, torch.tensor(12345, dtype=torch.int32, device=device), setting)
    of_h, of_y = (gradient.to(device, copy=True) for _ in range(2))
    codes.backpropagate(of_y, sums.to(device), torch.tensor(1 / len(y), device=device))
    found = {
        "codes": codes.packed,
        "ends": codes.packed.new_empty(0) if codes.ends is None else codes.ends,
        "h": h,
        "output": codes.output(slice(0, len(y))),
        "gradient": of_y,
        "sums": codes.gradient_sums(of_h),
    }
    return codes, {name: one.cpu() for name, one in found.items()}


def _count(one: Tensor, other: Tensor) -> int:
    """Of values with other bits."""
    if one.dtype == torch.float32:
        one, other = one.view(torch.int32), other.view(torch.int32)
    return int((one != other).sum())
