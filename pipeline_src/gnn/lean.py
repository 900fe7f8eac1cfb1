"""The whole network as one operation that keeps little and holds little.

EXACT compresses what each operation keeps. Looking at all of them at once, most of it
need not be kept at all:

* Aggregation is linear, so grad W = xᵀ(Aᵀg): no copy of A x, and Aᵀg is needed anyway.
* The first layer's input is resident data.
* BatchNorm, ReLU, Dropout and the next convolution's input share one code per value
  (quant/rectified.py): the ReLU mask is read from it exactly, Dropout is drawn again.

So a hidden layer keeps its codes and nothing else. Backward holds two tensors of the
size of an activation at once: the gradient, overwritten step by step, and its
transposed aggregation. Activations are read from their codes run by run and added to
the weight gradients; none is ever rebuilt as a whole.

The price is one more aggregation for the first layer, and gradients that carry the
noise of stochastic rounding in all layers but the first. There is no random projection,
whose noise is orders of magnitude larger.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from pipeline_src.gnn.aggregation import Aggregation
from pipeline_src.quant.rectified import Normalization, RectifiedCodes, encode


@dataclass(frozen=True)
class LeanRecipe:
    """How hidden layers are kept.

    Args:
        bits: of a code, one of RECTIFIED_BITS.
        rows_per_block: node rows that share a minimum and a maximum.
        compile: whether kernels are compiled.
    """

    bits: int
    rows_per_block: int
    compile: str = "auto"

    def padded(self, num_nodes: int) -> int:
        """Rows of a buffer that holds whole blocks."""
        return -(-num_nodes // self.rows_per_block) * self.rows_per_block


@dataclass(frozen=True, eq=False)
class LeanLayer:
    """Parameters of one layer; those that a layer lacks are None."""

    weight: Tensor  # (num_outputs, num_inputs), of the aggregated neighbours
    bias: Tensor  # (num_outputs,)
    root_weight: Tensor | None = None  # (num_outputs, num_inputs), of the node itself
    norm: nn.BatchNorm1d | None = None

    def parameters(self) -> list[Tensor]:
        """Those that are there, in the order of `Gradients.in_order`."""
        optional = [self.root_weight]
        if self.norm is not None:
            optional += [self.norm.weight, self.norm.bias]
        return [self.weight, self.bias, *(p for p in optional if p is not None)]

    def convolve(
        self,
        x: Tensor,  # (num_nodes, num_inputs)
        aggregation: Aggregation,
        output: Tensor,  # (num_nodes, num_outputs), overwritten
    ) -> None:
        """Write A x Wᵀ + b (+ x Wᵣᵀ) into output, aggregating the narrower side."""
        if output.shape[1] < x.shape[1]:
            aggregation.into(x @ self.weight.T, output)
        else:
            torch.mm(aggregation(x), self.weight.T, out=output)
        if self.root_weight is not None:
            output.addmm_(x, self.root_weight.T)
        output += self.bias

    def input_gradient(self, transposed: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of some rows of the input from those rows of Aᵀ g and g."""
        product = transposed @ self.weight
        if self.root_weight is not None:
            product.addmm_(gradient, self.root_weight)
        return product


class Gradients:
    """Gradients of one layer's parameters, added up run by run."""

    def __init__(self, layer: LeanLayer) -> None:
        """Start from zero."""
        self.weight = torch.zeros_like(layer.weight)
        self.bias = torch.zeros_like(layer.bias)
        self.root_weight = (
            None if layer.root_weight is None else torch.zeros_like(layer.root_weight)
        )
        self.norm: tuple[Tensor, ...] = ()

    def add(self, x: Tensor, transposed: Tensor, gradient: Tensor) -> None:
        """Add what some rows of the input contribute."""
        self.weight.addmm_(transposed.T, x)
        if self.root_weight is not None:
            self.root_weight.addmm_(gradient.T, x)

    def in_order(self) -> list[Tensor]:
        """As LeanLayer.parameters."""
        root = [] if self.root_weight is None else [self.root_weight]
        return [self.weight, self.bias, *root, *self.norm]


class LeanNetwork(Function):
    """Logits of a whole network, (num_nodes, num_classes)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (num_nodes, num_features): resident data, kept by reference
        aggregation: Aggregation,
        layers: list[LeanLayer],
        recipe: LeanRecipe,
        dropout: float,
        seeds: Tensor,  # (num_layers - 1,) int32
        finite: Tensor,  # (num_layers - 1,) bool, cleared where values are not finite
        *parameters: Tensor,  # of all layers in order: for autograd, not used here
    ) -> Tensor:
        num_nodes = x.shape[0]
        ctx.kept = []
        ctx.setting = (x, aggregation, layers)
        hidden = x
        for layer, seed, flag in zip(layers[:-1], seeds, finite, strict=True):
            width = layer.bias.numel()
            y = x.new_empty((recipe.padded(num_nodes), width))
            layer.convolve(hidden, aggregation, y[:num_nodes])
            y[num_nodes:] = y[num_nodes - 1]  # padding changes no block's ends
            normalization = _normalization(layer, y[:num_nodes])
            codes = encode(
                y,
                normalization,
                seed,
                dropout,
                recipe.bits,
                recipe.rows_per_block,
                recipe.compile,
            )
            flag.logical_and_(torch.isfinite(codes.high - codes.low).all())
            ctx.kept.append(codes)
            hidden = y[:num_nodes]
            del y
        logits = x.new_empty((num_nodes, layers[-1].bias.numel()))
        layers[-1].convolve(hidden, aggregation, logits)
        return logits

    @staticmethod
    def backward(ctx: Any, grad_logits: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.kept is None:
            raise RuntimeError(
                "backward can run only once: it gives back what was kept as it goes; "
                "run forward again"
            )
        x, aggregation, layers = ctx.setting
        kept, ctx.kept = ctx.kept, None
        num_nodes = x.shape[0]
        found = [Gradients(layer) for layer in layers]
        gradient = grad_logits
        for i in range(len(layers) - 1, 0, -1):
            codes = kept.pop()
            transposed = aggregation.transpose(gradient[:num_nodes])
            found[i].bias += gradient[:num_nodes].sum(dim=0)
            gradient = _through_convolution(
                layers[i], found[i], codes, transposed, gradient, num_nodes
            )
            del transposed
            _through_normalization(
                layers[i - 1], found[i - 1], codes, gradient, num_nodes
            )
        rows = gradient[:num_nodes]
        found[0].bias += rows.sum(dim=0)
        found[0].add(x, aggregation.transpose(rows), rows)
        return (*(None,) * 7, *(g for one in found for g in one.in_order()))


def _through_convolution(
    layer: LeanLayer,
    found: Gradients,
    codes: RectifiedCodes,  # of the layer's input
    transposed: Tensor,  # (num_nodes, num_outputs), Aᵀ times the gradient
    gradient: Tensor,  # (num_nodes or more, num_outputs); may be overwritten
    num_nodes: int,
) -> Tensor:
    """Gradient of the layer's input, (padded rows, num_inputs), padding 0."""
    num_inputs = layer.weight.shape[1]
    # Rows of the gradient are done with once their own input gradient is known, so it
    # can take their place where it has their size.
    reuse = gradient.shape == (codes.num_rows, num_inputs)
    result = gradient if reuse else gradient.new_empty((codes.num_rows, num_inputs))
    for rows, x in codes.outputs():
        last = min(rows.stop, num_nodes)
        part = slice(rows.start, last)
        found.add(x[: last - rows.start], transposed[part], gradient[part])
        result[part] = layer.input_gradient(transposed[part], gradient[part])
    result[num_nodes:] = 0.0
    return result


def _through_normalization(
    layer: LeanLayer,
    found: Gradients,
    codes: RectifiedCodes,
    gradient: Tensor,  # (padded rows, width): of h; overwritten with that of y
    num_nodes: int,
) -> None:
    """Through Dropout, ReLU and BatchNorm, in place."""
    if layer.norm is None:
        none = torch.zeros(gradient.shape[1], device=gradient.device)
        codes.backpropagate(gradient, none, none)
        return
    of_bias, of_weight = codes.gradient_sums(gradient)
    found.norm = (of_weight, of_bias)
    codes.backpropagate(gradient, of_bias / num_nodes, of_weight / num_nodes)


def _normalization(layer: LeanLayer, y: Tensor) -> Normalization:
    """Statistics of this batch, also taken into the running ones."""
    if layer.norm is None:
        zero = torch.zeros(y.shape[1], device=y.device)
        return Normalization(zero, zero + 1, zero + 1, zero)
    variance, mean = torch.var_mean(y, dim=0, correction=0)
    _update_running(layer.norm, mean, variance * (len(y) / (len(y) - 1)))
    inverse_std = torch.rsqrt(variance + layer.norm.eps)
    return Normalization(mean, inverse_std, layer.norm.weight, layer.norm.bias)


def _update_running(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.momentum is None:
        return
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance, norm.momentum)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
