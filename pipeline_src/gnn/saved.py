"""The seam to autograd: operations that keep compressed activations for backward.

Each operation computes its output in full precision from its uncompressed input, so no
error accumulates in forward; only the copy kept for backward is lossy, and unbiased.
What is kept is the published layout (EXACT, Liu et al. 2022; tensor by tensor in
Eliassen & Selvan's code):

    convolution      its input, projected and quantised; GraphSAGE also the aggregated
                     input, separately
    BatchNorm        its input, quantised but not projected (backward uses each value),
                     and the mean and inverse standard deviation per feature
    ReLU, Dropout    one bit per value each

Two things are not taken over. EXACT's GCN also keeps, and dequantises, an input of the
aggregation that its backward never uses. And its projection matrices are stored; here
they are drawn again from the seed. With 32 bits each operation gives the gradients of
its PyTorch counterpart exactly.

NaN and infinity are reported without making the device wait: `finite` holds a flag per
activation that is cleared on the device, and read when the caller chooses to.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pipeline_src.gnn.aggregation import Aggregation
from pipeline_src.quant.bitmask import mask_gradient, pack_mask
from pipeline_src.quant.compressor import CompressedActivation, Compressor
from pipeline_src.quant.dtypes import SUPPORTED, check_dtype
from pipeline_src.quant.first_order import first_order
from pipeline_src.quant.references import check_unchanged, watch


def _keep(
    ctx: Any,
    *activations: CompressedActivation,
    also: tuple[Tensor | None, ...] = (),
    aggregation: Aggregation | None = None,
) -> None:
    """Hand tensors to autograd, descriptions and what is resident to the context."""
    ctx.aggregation = aggregation
    ctx.descriptions = [activation.without_tensors() for activation in activations]
    ctx.counts = [len(activation.tensors) for activation in activations]
    kept = [tensor for activation in activations for tensor in activation.tensors]
    boundaries = [one.compressor.boundaries for one in activations]
    resident = () if aggregation is None else aggregation.watched()
    ctx.references = watch(("boundaries", one) for one in boundaries) + resident
    ctx.save_for_backward(*kept, *also)


def _kept(ctx: Any) -> tuple[list[CompressedActivation], tuple[Tensor, ...]]:
    """Read back what `_keep` kept: activations, and the other tensors."""
    check_unchanged(ctx.references)
    tensors = ctx.saved_tensors
    activations = []
    for description, count in zip(ctx.descriptions, ctx.counts, strict=True):
        activations.append(description.read(tensors[:count]))
        tensors = tensors[count:]
    return activations, tensors


class SageConvolution(Function):
    """Mean over neighbours and root, each times its own weight: A x Wₙᵀ + b + x Wᵣᵀ."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (num_nodes, num_features)
        weight_neighbor: Tensor,  # (num_outputs, num_features)
        bias: Tensor,  # (num_outputs,)
        weight_root: Tensor,  # (num_outputs, num_features)
        aggregation: Aggregation,
        compressors: tuple[Compressor, Compressor],  # of input, aggregated input
        seeds: Tensor,  # (2,) int32
        finite: Tensor,  # (2,) bool, cleared where an activation is not finite
    ) -> Tensor:
        aggregated = aggregation(x)
        kept_input = compressors[0].compress(x, seeds[0])
        kept_aggregated = compressors[1].compress(aggregated, seeds[1])
        finite[0].logical_and_(kept_input.is_finite)
        finite[1].logical_and_(kept_aggregated.is_finite)
        also = (weight_neighbor, weight_root)
        _keep(ctx, kept_input, kept_aggregated, also=also, aggregation=aggregation)
        output = torch.addmm(bias, aggregated, weight_neighbor.T)
        return output.addmm_(x, weight_root.T)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (kept_input, kept_aggregated), (weight_neighbor, weight_root) = _kept(ctx)
        grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = ctx.aggregation.transpose(gradient @ weight_neighbor)
            grad_input.addmm_(gradient, weight_root)
        return (
            grad_input,
            kept_aggregated.weight_gradient(gradient),
            gradient.sum(dim=0),
            kept_input.weight_gradient(gradient),
            *(None,) * 4,
        )


class GcnConvolution(Function):
    """Weight first, then aggregate: A (x Wᵀ) + b."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (num_nodes, num_features)
        weight: Tensor,  # (num_outputs, num_features)
        bias: Tensor,  # (num_outputs,)
        aggregation: Aggregation,
        compressor: Compressor,
        seeds: Tensor,  # (1,) int32
        finite: Tensor,  # (1,) bool, cleared where the activation is not finite
    ) -> Tensor:
        kept_input = compressor.compress(x, seeds[0])
        finite[0].logical_and_(kept_input.is_finite)
        _keep(ctx, kept_input, also=(weight,), aggregation=aggregation)
        return aggregation(x @ weight.T).add_(bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (kept_input,), (weight,) = _kept(ctx)
        grad_transformed = ctx.aggregation.transpose(gradient)
        grad_input = grad_transformed @ weight if ctx.needs_input_grad[0] else None
        return (
            grad_input,
            kept_input.weight_gradient(grad_transformed),
            gradient.sum(dim=0),
            *(None,) * 4,
        )


class BatchNormalization(Function):
    """Batch normalisation, by the batch or by running statistics (batch_norm.py)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (num_nodes, num_features)
        weight: Tensor,  # (num_features,)
        bias: Tensor,  # (num_features,)
        running_mean: Tensor | None,  # moved if by_batch, else read
        running_var: Tensor | None,
        by_batch: bool,
        momentum: float,
        eps: float,
        compressor: Compressor,
        seeds: Tensor,  # (1,) int32
        finite: Tensor,  # (1,) bool, cleared where the activation is not finite
    ) -> Tensor:
        check_dtype(x, "x", (torch.float32,))
        output, mean, inverse_std = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, by_batch, momentum, eps
        )
        kept = compressor.compress(x, seeds[0])
        finite[0].logical_and_(kept.is_finite)
        running = (None, None) if by_batch else (running_mean, running_var)
        _keep(ctx, kept, also=(weight, mean, inverse_std, *running))
        ctx.by_batch, ctx.eps, ctx.has_bias = by_batch, eps, bias is not None
        return output

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (kept,), (weight, mean, inverse_std, *running) = _kept(ctx)
        grad_input, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            gradient,
            kept.decompress(),
            weight,
            *running,
            mean,
            inverse_std,
            ctx.by_batch,
            ctx.eps,
            [ctx.needs_input_grad[0], weight is not None, ctx.has_bias],
        )
        return (grad_input, grad_weight, grad_bias, *(None,) * 8)


class ReluWithBitMask(Function):
    """ReLU that keeps one bit per value: whether it was positive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, compile: str) -> Tensor:
        check_dtype(x, "x", SUPPORTED)
        ctx.save_for_backward(pack_mask(x > 0, compile))
        ctx.compile = compile
        return torch.relu(x)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        return mask_gradient(gradient, packed, compile=ctx.compile), None


class DropoutWithBitMask(Function):
    """Dropout in training mode that keeps one bit per value: whether it survived."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float, compile: str) -> Tensor:
        check_dtype(x, "x", SUPPORTED)
        output, mask = torch.native_dropout(x, probability, True)
        ctx.save_for_backward(pack_mask(mask, compile))
        ctx.factor = 1.0 / (1.0 - probability)
        ctx.compile = compile
        return output

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        return mask_gradient(gradient, packed, ctx.factor, ctx.compile), None, None


class Aggregate(Function):
    """A fixed linear map under autograd: keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, aggregation: Aggregation) -> Tensor:
        _keep(ctx, aggregation=aggregation)
        return aggregation(x)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        _kept(ctx)
        return ctx.aggregation.transpose(gradient), None
