"""Where the values of an activation lie within their blocks: positions, in bin units.

A position is (x - minimum) / (maximum - minimum) of a block, scaled to 0..num_bins. The
law of the positions is what placing boundaries assumes, so it is what a capture keeps.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """Positions seen in one activation, and what is known of all of it.

    Args:
        position: (num_sampled_blocks * block_size,) float32, bin units 0..num_bins;
            whole blocks one after the other.
        block_size: values per block; smaller than asked when the activation is.
        num_values: values in the activation.
        at_minimum: fraction of all values equal to their block's minimum.
        at_maximum: fraction equal to their block's maximum and above its minimum.
        zero_fraction: fraction of all values that are exactly 0.
    """

    position: np.ndarray
    block_size: int
    num_values: int
    at_minimum: float
    at_maximum: float
    zero_fraction: float


def observe_blocks(
    activation: Tensor,  # (num_nodes, num_features) float
    block_size: int,
    bits: int,
    *,
    sample_blocks: int,
    generator: torch.Generator,  # on the CPU; the same seed takes the same blocks
) -> Observation:
    """Normalize an activation block by block and keep a random sample of blocks.

    Minimum and maximum are the exact float32 ones, not the rounded pair a compressed
    activation keeps: what is asked is the law of the values, not of a storage format.
    A constant block lies at position 0. A partial last block counts in the fractions
    but is not sampled; an activation smaller than a block is one block of its own size.
    """
    values = activation.detach().float().flatten()
    num_values = values.numel()
    if num_values == 0:
        raise ValueError(
            "cannot observe an empty activation; expected at least 1 value"
        )
    if block_size < 1 or sample_blocks < 1:
        raise ValueError(
            "block_size and sample_blocks must be at least 1, "
            f"got {block_size} and {sample_blocks}"
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError("cannot observe an activation that holds NaN or infinity")
    block_size = min(block_size, num_values)
    num_whole = num_values // block_size
    whole = values[: num_whole * block_size].view(num_whole, block_size)
    pieces = [whole]
    if num_whole * block_size < num_values:
        pieces.append(values[num_whole * block_size :][None])
    at_minimum = at_maximum = 0
    for piece in pieces:
        low, high = torch.aminmax(piece, dim=1, keepdim=True)
        at_minimum += int((piece == low).sum())
        at_maximum += int(((piece == high) & (high > low)).sum())

    chosen = torch.randperm(num_whole, generator=generator)[:sample_blocks]
    sample = whole[chosen.sort().values.to(whole.device)].double()
    low, high = torch.aminmax(sample, dim=1, keepdim=True)
    width = torch.where(high > low, high - low, 1.0)
    num_bins = 2**bits - 1
    position = ((sample - low) / width * num_bins).float()
    return Observation(
        position=position.flatten().cpu().numpy(),
        block_size=block_size,
        num_values=num_values,
        at_minimum=at_minimum / num_values,
        at_maximum=at_maximum / num_values,
        zero_fraction=int((values == 0).sum()) / num_values,
    )
