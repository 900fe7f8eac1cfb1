"""Whether a GPU makes the codes that a CPU makes, value by value.

Noise and metadata are the same bits everywhere. A position is a product and a sum, and
a GPU may fuse the two or divide to 2 ulp, so a value within rounding of an edge may
take the other side of it. How close is bounded: in units of the block's range a
position is off by the rounding of the quotient (2 ulp), of two products, of a sum with
noise and, in an uneven grid, of one more quotient, product and sum. With u = 2**-24 and
all of them taken as large as the range, that is less than 16 u on either device, and

    less than 32 u = 2**-19 of the range

between two. So `beside_an_edge` counts values whose code a CPU changes when they move
by that much either way; a GPU's code must be among the three, or it is wrong. The two
ends of a block stay where they are, or its metadata would move: they are compared with
their own code alone, and counted apart.

Decoded values are compared for the same codes. A value is an edge times a scale plus a
zero point; fused or not, two results differ by at most u times the product and 2 u
times the value, which is within 2**-23 (|value - zero point| + |value|).
"""

from typing import Any

import torch
from torch import Tensor

from pipeline_src.measuring.gpu.clock import Deadline
from pipeline_src.measuring.gpu.results import Rows
from pipeline_src.quant.blockwise import compress_blocks, decompress_blocks

COLUMNS = (
    *("device", "bits", "block_size", "boundaries", "values"),
    *("differing_codes", "beside_an_edge", "differing_ends", "wrong_codes"),
    *("differing_metadata", "differing_decoded", "decoded_difference_over_bound"),
)
# Bits, and whether edges are even, as those of one bit are.
SETTINGS = (
    (2, True),
    (2, False),
    (1, True),
    (4, True),
    (4, False),
    (8, True),
    (8, False),
)
BLOCK_SIZE = 256
CLOSE = 2.0**-19  # of a block's range


def compare_devices(
    rows: Rows,
    name: str,
    device: torch.device,
    deadline: Deadline,
    *,
    values: int = 4_000_000,
    compile: bool = True,
) -> list[str]:
    """Compare each setting in turn; returns those that the deadline left out."""
    settings = list(SETTINGS)
    while settings and deadline.left() > 0:
        bits, even = settings.pop(0)
        found = compare_codes(
            bits, even, values, device, "true" if compile else "false"
        )
        rows.add({"device": name, **found})
    return [f"{bits} bits, {_law(even)} edges" for bits, even in settings]


def compare_codes(
    bits: int, even: bool, values: int, device: torch.device, compile: str
) -> dict[str, Any]:
    """Counts of values that differ between the CPU's plain kernels and a device's."""
    values -= values % BLOCK_SIZE
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(values // BLOCK_SIZE, BLOCK_SIZE, generator=generator)
    seed = torch.tensor(12345, dtype=torch.int32)
    edges = None if even else uneven_edges(2**bits)
    kept = compress_blocks(x, seed, bits, BLOCK_SIZE, edges, "false")
    on_device = compress_blocks(
        x.to(device), seed.to(device), bits, BLOCK_SIZE, _to(edges, device), compile
    )
    expected, found = codes_of(kept[0], bits), codes_of(on_device[0].cpu(), bits)
    low, high = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
    is_end = ((x == low) | (x == high)).view(expected.shape)
    near = [
        codes_of(compress_blocks(y, seed, bits, BLOCK_SIZE, edges, "false")[0], bits)
        for y in _moved(x, low, high)
    ]
    differs = expected != found
    allowed = (found == near[0]) | (found == near[1])
    metadata = sum(
        int((a.view(torch.int16) != b.cpu().view(torch.int16)).sum())
        for a, b in zip(kept[1:], on_device[1:], strict=True)
    )
    return {
        "bits": bits,
        "block_size": BLOCK_SIZE,
        "boundaries": _law(even),
        "values": values,
        "differing_codes": int(differs.sum()),
        "beside_an_edge": int(((near[0] != expected) | (near[1] != expected)).sum()),
        "differing_ends": int((differs & is_end).sum()),
        "wrong_codes": int((differs & ~is_end & ~allowed).sum()),
        "differing_metadata": metadata,
        **_compare_decoded(kept, x.shape, bits, edges, device, compile),
    }


def codes_of(
    packed: Tensor,  # (packets, words) uint8
    bits: int,
) -> Tensor:
    """The code of each value, (packets, words per packet x codes per word) uint8.

    Code j of word w of a block is value j x words + w, see quant/blockwise.py.
    """
    parts = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.cat(parts, dim=1)


def uneven_edges(num_levels: int) -> Tensor:
    """Edges of unequal bins from 0 to num_levels - 1, (num_levels,) float32."""
    edges = torch.arange(num_levels, dtype=torch.float32)
    inner = (edges > 0) & (edges < num_levels - 1)
    return edges + 0.3 * torch.sin(1.7 * edges) * inner


def _moved(x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Values a little lower and higher, but for the ends of each block."""
    close = CLOSE * (high - low)
    inner = (x > low) & (x < high)
    down, up = torch.maximum(x - close, low), torch.minimum(x + close, high)
    return torch.where(inner, down, x), torch.where(inner, up, x)


def _compare_decoded(
    kept: tuple[Tensor, Tensor, Tensor],
    shape: torch.Size,
    bits: int,
    edges: Tensor | None,
    device: torch.device,
    compile: str,
) -> dict[str, Any]:
    expected = decompress_blocks(kept[0], kept[1], kept[2], shape, bits, edges, "false")
    packed, zero_point, scale = (part.to(device) for part in kept)
    on_device = decompress_blocks(
        packed, zero_point, scale, shape, bits, _to(edges, device), compile
    )
    product = expected - kept[1].to(torch.float32)[:, None]
    bound = 2.0**-23 * (product.abs() + expected.abs())
    difference = (on_device.cpu() - expected).abs()
    share = torch.where(difference > 0, difference / bound, 0.0)
    return {
        "differing_decoded": int((difference > 0).sum()),
        "decoded_difference_over_bound": float(share.max()),
    }


def _to(edges: Tensor | None, device: torch.device) -> Tensor | None:
    return None if edges is None else edges.to(device)


def _law(even: bool) -> str:
    return "even" if even else "uneven"
