"""Trainings in which backward knows of each hidden layer what a layout leaves of it.

Autograd does all but two things. A hidden layer's own gradient follows from the
estimate of n (`Hidden.input_gradient`). The convolution behind it multiplies by the
right input in forward and by the estimated one in backward: it is given the estimate,
and its output is set right by a constant.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline_src.gnn.aggregation import Aggregation
from pipeline_src.gnn.models import GraphNetwork, SageLayer
from pipeline_src.graphs.graph import Graph
from pipeline_src.measuring.lean.layouts import Estimate, Layout, Sides, sides_of
from pipeline_src.quant.rectified import Normalization
from pipeline_src.training.batches import Batch
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec
from pipeline_src.training.trainer import Trainer

EPOCHS, LEARNING_RATE, CLIP = 60, 0.01, 0.5


def small_run(hidden_layers: int, width: int, dropout: float, epochs: int) -> RunSpec:
    """GraphSAGE with BatchNorm on the digits, all of backward in full precision."""
    model = ModelSpec(
        f"sage-{hidden_layers + 1}x{width}",
        "sage",
        hidden_layers + 1,
        width,
        dropout,
        batch_norm=True,
    )
    training = TrainingSpec(epochs, LEARNING_RATE, 0.0, CLIP, "cross_entropy")
    method = MethodSpec("fp32", "FP32", "full")
    return RunSpec("digits", model, method, training, seeds=(0,), compile="false")


class Hidden:
    """What forward leaves of a hidden layer."""

    def __init__(
        self,
        sides: Sides,
        normalization: Normalization,
        scale: Tensor,  # Dropout's: 0 or 1 / (1 - p), like n
    ) -> None:
        self.sides = sides
        self.normalization = normalization
        self.scale = scale

    def output(self, n: Tensor) -> Tensor:
        """The next layer's input from n or its estimate."""
        u = n * self.normalization.weight + self.normalization.bias
        return torch.where(self.sides.active, u * self.scale, 0.0)

    def input_gradient(self, gradient: Tensor, found: Estimate) -> Tensor:
        """Gradient of y from that of the output, as quant/rectified.py has it."""
        passed = self.passed(gradient)
        own = passed * found.variance / len(passed)
        product = (passed * found.n).mean(dim=0)
        centred = passed - passed.mean(dim=0) - found.n * product + own
        norm = self.normalization
        return centred * (norm.weight * norm.inverse_std)

    def passed(self, gradient: Tensor) -> Tensor:
        """What ReLU and Dropout let through of the output's gradient."""
        return torch.where(self.sides.active, gradient * self.scale, 0.0)


class Rectified(torch.autograd.Function):
    """BatchNorm, ReLU and Dropout of y, and backward from an estimate of n."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,  # only for its gradient
        weight: Tensor,
        bias: Tensor,
        hidden: Hidden,
        found: Estimate,
    ) -> Tensor:
        """The output, (num_nodes, num_features)."""
        ctx.hidden, ctx.found = hidden, found
        return hidden.output(hidden.sides.n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y, weight and bias."""
        (gradient,) = gradients
        passed = ctx.hidden.passed(gradient)
        of_weight = (passed * ctx.found.n).sum(dim=0)
        of_y = ctx.hidden.input_gradient(gradient, ctx.found)
        return of_y, of_weight, passed.sum(dim=0), None, None


class LayoutTrainer(Trainer):
    """A trainer in full precision whose backward knows what the layouts leave."""

    def __init__(
        self, spec: RunSpec, graph: Graph, layouts: tuple[Layout, ...], seed: int
    ) -> None:
        super().__init__(spec, graph, None, seed)
        self.layouts = layouts

    def logits(self, step: int, batch: Batch | None = None) -> Tensor:
        """As the model's, with Dropout and noise of this seed and step alone."""
        self.model.train()
        generator = torch.Generator().manual_seed(self.seed * 2**20 + step)
        dropout = self.spec.model.dropout
        model = cast(GraphNetwork, self.model)
        *hidden, last = cast(list[SageLayer], list(model.convolutions))
        norms = cast(list[nn.BatchNorm1d], list(model.norms))
        x = known = self.graph.features
        for convolution, norm, layout in zip(hidden, norms, self.layouts, strict=True):
            y = self._convolve(convolution, x, known)
            kept = hidden_layer(y.detach(), norm, dropout, generator)
            noise = torch.rand(y.shape, generator=generator)
            found = layout(kept.sides, noise)
            x = Rectified.apply(y, norm.weight, norm.bias, kept, found)
            known = kept.output(found.n)
        return self._convolve(last, x, known)[self.graph.train_index]

    def _convolve(self, convolution: SageLayer, x: Tensor, known: Tensor) -> Tensor:
        """Of x in forward, and with what is known of it in backward."""
        aggregation = cast(Aggregation, self.aggregation)
        y = convolution.plain(x + (known - x).detach(), aggregation)
        with torch.no_grad():
            off = convolution.plain(x, aggregation) - y
        return y + off


@torch.no_grad()
def hidden_layer(
    y: Tensor, norm: nn.BatchNorm1d, dropout: float, generator: torch.Generator
) -> Hidden:
    """What BatchNorm, which counts this batch, ReLU and Dropout make of y."""
    norm(y)
    mean = y.mean(dim=0)
    inverse_std = (y.var(dim=0, unbiased=False) + norm.eps).rsqrt()
    how = Normalization(mean, inverse_std, norm.weight.detach(), norm.bias.detach())
    scale = (torch.rand(y.shape, generator=generator) >= dropout) / (1 - dropout)
    return Hidden(sides_of((y - mean) * inverse_std, how), how, scale)
