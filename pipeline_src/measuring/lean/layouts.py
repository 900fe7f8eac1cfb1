"""Layouts of lean's codes, as plain functions: what backward may know of n.

n is BatchNorm's normalised input of a hidden layer. With x the share of the way from
ReLU's threshold to the end of the value's side of its block, U a uniform number and L
levels on a side, stochastic rounding keeps floor((L - 1) x + U): unbiased, of variance
at most 1 / 4 of a step squared. A mean of the side is one number for all its values,
and right in their sum alone. Shared noise: quant/shared_noise.py.

Nothing is packed. All tensors are float32, (num_nodes, num_features).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline_src.quant.blockwise import round_down
from pipeline_src.quant.rectified import Normalization
from pipeline_src.quant.shared_noise import (
    estimate_share,
    estimate_variance,
    round_to_level,
)

ROWS_PER_BLOCK = 8


class Sides(NamedTuple):
    """A hidden layer's n, and where each value lies."""

    n: Tensor
    active: Tensor  # whether it passes ReLU
    middle: Tensor  # the threshold, within the block
    reach: Tensor  # from there to the end of the value's side, signed

    @property
    def share(self) -> Tensor:
        """Of the way to the end, 0 to 1."""
        distance, reach = torch.abs(self.n - self.middle), torch.abs(self.reach)
        return torch.where(reach > 0, distance / reach, 0.0)


class Estimate(NamedTuple):
    """What backward knows of n."""

    n: Tensor
    variance: Tensor | float = 0.0  # its estimate, to take off; 0: nothing is taken


def sides_of(
    n: Tensor,  # (num_nodes, num_features)
    normalization: Normalization,
) -> Sides:
    """Where values lie between ReLU's threshold and their block's ends."""
    _, _, weight, bias = normalization
    padding = -len(n) % ROWS_PER_BLOCK
    blocks = torch.cat([n, n[-1:].expand(padding, -1)]).view(
        -1, ROWS_PER_BLOCK, n.shape[1]
    )
    low = round_down(blocks.amin(dim=(1, 2))).repeat_interleave(ROWS_PER_BLOCK)
    high = -round_down(-blocks.amax(dim=(1, 2))).repeat_interleave(ROWS_PER_BLOCK)
    low, high = low[: len(n), None], high[: len(n), None]
    middle = torch.minimum(torch.maximum(normalization.threshold, low), high)
    active = n * weight + bias > 0
    reach = torch.where(active == (weight >= 0), high - middle, low - middle)
    return Sides(n, active, middle, reach)


Layout = Callable[[Sides, Tensor], Estimate]  # noise in (0, 1), like n


def kept(sides: Sides, noise: Tensor) -> Estimate:
    """All of n: computed again."""
    return Estimate(sides.n)


def side_means(sides: Sides, noise: Tensor) -> Estimate:
    """The mean over nodes of either side of a feature."""
    return Estimate(torch.where(sides.active, _mean(sides, True), _mean(sides, False)))


def three_and_mean(sides: Sides, noise: Tensor) -> Estimate:
    """Three levels on the active side; the other is its mean."""
    return Estimate(
        torch.where(sides.active, _rounded(sides, noise, 3), _mean(sides, False))
    )


def two_ends(sides: Sides, noise: Tensor) -> Estimate:
    """Two levels a side."""
    return Estimate(_rounded(sides, noise, 2))


def three_and_two(sides: Sides, noise: Tensor) -> Estimate:
    """Three levels on the active side, two on the other."""
    three, two = _rounded(sides, noise, 3), _rounded(sides, noise, 2)
    return Estimate(torch.where(sides.active, three, two))


def shared_noise(steps: int, mended: bool) -> Layout:
    """Levels found with noise that the reader knows, as in quant/shared_noise.py."""

    def layout(sides: Sides, noise: Tensor) -> Estimate:
        level = round_to_level(sides.share, torch.ones(()), noise, steps)
        n = sides.middle + sides.reach * estimate_share(level, noise, steps)
        if not mended:
            return Estimate(n)
        variance = sides.reach.square() * estimate_variance(level, noise, steps)
        return Estimate(n, variance)

    return layout


def _rounded(sides: Sides, noise: Tensor, levels: int) -> Tensor:
    level = torch.floor(sides.share * (levels - 1) + noise).clamp(max=levels - 1)
    return sides.middle + sides.reach * level / (levels - 1)


def _mean(sides: Sides, active: bool) -> Tensor:
    """Of one side of each feature, (num_features,); 0 if it is empty."""
    of_side = (sides.active == active).to(sides.n.dtype)
    return (sides.n * of_side).sum(dim=0) / of_side.sum(dim=0).clamp(min=1)
