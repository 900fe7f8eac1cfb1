"""What a BatchNorm module asks of the batch at hand, as nn.BatchNorm1d decides it.

A norm has a mode of its own, whatever that of the network around it. In training, or
without running statistics, it normalises by the batch; otherwise by the running ones,
which its gradient then takes for constants. In training it also moves the running
statistics, unless it does not track them: by `momentum`, or, where that is None, so
that they are the mean over all batches. Weight and bias may each be missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """A norm for one batch."""

    weight: Tensor | None  # (num_features,)
    bias: Tensor | None
    running_mean: Tensor | None  # moved if by_batch, else read; None: neither
    running_var: Tensor | None
    by_batch: bool
    momentum: float  # share of the batch in the moved statistics
    eps: float

    @classmethod
    def of(cls, norm: nn.BatchNorm1d) -> "BatchNorm":
        """As the module stands; in training this counts the batch."""
        momentum = norm.momentum or 0.0
        count = norm.num_batches_tracked if norm.track_running_stats else None
        if norm.training and count is not None:
            count.add_(1)
            if norm.momentum is None:
                momentum = 1.0 / float(count)
        used = not norm.training or norm.track_running_stats
        return cls(
            norm.weight,
            norm.bias,
            norm.running_mean if used else None,
            norm.running_var if used else None,
            normalizes_by_batch(norm),
            momentum,
            norm.eps,
        )

    def parameters(self) -> list[Tensor]:
        """Weight and bias, if they are there."""
        return [p for p in (self.weight, self.bias) if p is not None]

    def statistics(
        self,
        x: Tensor,  # (num_nodes, num_features)
    ) -> "Statistics":
        """What to normalise by; the running ones stay until `move_running`."""
        if not self.by_batch:
            assert self.running_mean is not None, "else the batch decides"
            assert self.running_var is not None, "else the batch decides"
            # A copy: the next batch may move the running mean before backward.
            mean, variance = self.running_mean.clone(), self.running_var
        else:
            variance, mean = torch.var_mean(x, dim=0, correction=0)
        return Statistics(self, mean, variance, torch.rsqrt(variance + self.eps))


class Statistics(NamedTuple):
    """What a norm normalises a batch by; each tensor (num_features,)."""

    norm: BatchNorm
    mean: Tensor
    variance: Tensor
    inverse_std: Tensor


def move_running(found: Sequence[Statistics], num_nodes: int) -> None:
    """Take a batch of so many nodes into the running statistics of all its norms.

    Together, because one by one costs a launch each on a GPU; but norms that layers
    share one after the other, because nothing orders what is written together.
    """
    moves = [
        (running, batch, one.norm.momentum)
        for one, unbiased in zip(found, _unbiased(found, num_nodes), strict=True)
        for running, batch in (
            (one.norm.running_mean, one.mean),
            (one.norm.running_var, unbiased),
        )
        if running is not None and one.norm.by_batch
    ]
    while moves:
        momentum, later = moves[0][2], []
        together: dict[int, tuple[Tensor, Tensor]] = {}
        for move in moves:
            if move[2] != momentum or id(move[0]) in together:
                later.append(move)
            else:
                together[id(move[0])] = move[:2]
        pairs = together.values()
        torch._foreach_lerp_([to for to, _ in pairs], [x for _, x in pairs], momentum)
        moves = later


def _unbiased(found: Sequence[Statistics], num_nodes: int) -> Sequence[Tensor]:
    """Variances of a population, from those of a batch."""
    if num_nodes < 2 or not found:  # refused unless running statistics are read
        return [one.variance for one in found]
    factor = num_nodes / (num_nodes - 1)
    return torch._foreach_mul([one.variance for one in found], factor)


def normalizes_by_batch(norm: nn.BatchNorm1d) -> bool:
    """True where statistics are those of the batch."""
    return norm.training or (norm.running_mean is None and norm.running_var is None)


def check_batch(norm: nn.BatchNorm1d, num_nodes: int) -> None:
    """Refuse a batch that has no spread to normalise by, before anything is computed.

    Raises:
        ValueError: if there are fewer than two nodes.
    """
    if num_nodes < 2 and normalizes_by_batch(norm):
        raise ValueError(
            "BatchNorm in training needs more than 1 node to normalise by, got "
            f"{num_nodes}; pass more nodes at once, or call eval() on the norm"
        )
