"""BatchNorm over the nodes of all ranks, with its input kept whole or as codes.

The mean, then the sum of squared deviations from it, are added up over ranks, so that
each normalises by the whole graph. Backward of x̂ = (x - mean) / std, y = w x̂ + b is

    grad_x = w / std (g - sum(g) / n - x̂ sum(g x̂) / n)

with sums over all n nodes; grad_w = sum(g x̂) and grad_b = sum(g) are left as this
rank's share, like the gradients of all other parameters. Sums travel as float64, which
adds no error to float32 ones and counts any number of nodes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from pipeline_src.distributed.ranks import Ranks
from pipeline_src.gnn.batch_norm import (
    BatchNorm,
    Statistics,
    check_batch,
    move_running,
    normalizes_by_batch,
)
from pipeline_src.quant.compressor import Compressor
from pipeline_src.quant.dtypes import check_dtype
from pipeline_src.quant.first_order import first_order
from pipeline_src.quant.references import check_unchanged, watch

KEPT_WHOLE = Compressor(32)


class SyncedBatchNorm(nn.BatchNorm1d):
    """nn.BatchNorm1d whose batch is the nodes of all ranks."""

    _no_seed: Tensor

    def __init__(self, num_features: int, ranks: Ranks) -> None:
        """Start as nn.BatchNorm1d does."""
        super().__init__(num_features)
        self.ranks = ranks
        # Kept whole, an input is rounded by no seed; backward would keep a new one.
        no_seed = torch.zeros(1, dtype=torch.int32)
        self.register_buffer("_no_seed", no_seed, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise this rank's nodes, (num_own, num_features)."""
        finite = torch.ones(1, dtype=torch.bool, device=x.device)
        return self.compressed(x, KEPT_WHOLE, self._no_seed, finite)

    def compressed(
        self,
        x: Tensor,  # (num_own, num_features) float32
        compressor: Compressor,
        seeds: Tensor,  # (1,) int32
        finite: Tensor,  # (1,) bool, cleared where x is not finite
    ) -> Tensor:
        """The same, with the input kept by a Compressor.

        Raises:
            ValueError: if all ranks together have fewer than two nodes.
        """
        if not normalizes_by_batch(self):
            return super().forward(x)
        norm = BatchNorm.of(self)
        return SyncedBatchNormalization.apply(
            x, norm.weight, norm.bias, self, norm, compressor, seeds, finite
        )


class SyncedBatchNormalization(Function):
    """Batch normalisation by the nodes of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (num_own, num_features)
        weight: Tensor,  # (num_features,)
        bias: Tensor,  # (num_features,)
        module: SyncedBatchNorm,
        norm: BatchNorm,
        compressor: Compressor,
        seeds: Tensor,  # (1,) int32
        finite: Tensor,  # (1,) bool, cleared where the activation is not finite
    ) -> Tensor:
        check_dtype(x, "x", (torch.float32,))
        ranks = module.ranks
        count = x.new_full((1,), x.shape[0], dtype=torch.float64)
        total = ranks.add_up(torch.cat([x.sum(dim=0).double(), count]))
        num_nodes = int(total[-1])
        check_batch(module, num_nodes)
        mean = (total[:-1] / num_nodes).float()
        squares = ranks.add_up((x - mean).square_().sum(dim=0).double())
        variance = (squares / num_nodes).float()
        inverse_std = torch.rsqrt(variance + norm.eps)
        move_running([Statistics(norm, mean, variance, inverse_std)], num_nodes)
        kept = compressor.compress(x, seeds[0])
        finite[0].logical_and_(kept.is_finite)
        ctx.description, ctx.ranks = kept.without_tensors(), ranks
        ctx.num_nodes = num_nodes
        ctx.references = watch([("boundaries", compressor.boundaries)])
        ctx.save_for_backward(*kept.tensors, weight, mean, inverse_std)
        return torch.addcmul(bias, (x - mean).mul_(inverse_std), weight)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        check_unchanged(ctx.references)
        *kept, weight, mean, inverse_std = ctx.saved_tensors
        normal = ctx.description.read(tuple(kept)).decompress()
        normal = (normal - mean).mul_(inverse_std)
        own = torch.stack([gradient.sum(dim=0), (gradient * normal).sum(dim=0)])
        total = ctx.ranks.add_up(own.double()).div_(ctx.num_nodes).float()
        grad_input = gradient - total[0]
        grad_input.addcmul_(normal, total[1], value=-1).mul_(weight * inverse_std)
        return (grad_input, own[1], own[0], *(None,) * 5)
