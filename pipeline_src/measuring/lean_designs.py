"""What lean's codes might have been: bias and variance of each layout, side by side.

    python -m pipeline_src.measuring.lean_designs results/published/lean_bias.csv

A layout says how backward estimates n, BatchNorm's normalised input, of every hidden
value; all else of lean follows from that (quant/rectified.py). So layouts are plain
functions on n here, in float32 and without packing, and one network runs them all:
GraphSAGE, 3 layers of 64 with BatchNorm and Dropout, on digits after five steps in full
precision. Ends of blocks are those of lean. Every draw has rounding and Dropout of its
own; the exact gradient has the same Dropout.

Bytes are counted on ogbn-arxiv's shape with layers of 128, as measuring/byte_books.py
counts them. Five levels take 7 bits for three codes, because 5**3 <= 2**7.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_src.gnn.aggregation import Aggregation
from pipeline_src.gnn.models import GraphNetwork, SageLayer
from pipeline_src.graphs.embedded import digits_graph
from pipeline_src.graphs.graph import Graph
from pipeline_src.graphs.sizes import ARXIV
from pipeline_src.measuring.gradient_error import split_error
from pipeline_src.measuring.lean_layouts import (
    ROWS_PER_BLOCK,
    Estimate,
    Layout,
    Sides,
    kept,
    shared_noise,
    side_means,
    sides_of,
    three_and_mean,
    three_and_two,
    two_ends,
)
from pipeline_src.quant.rectified import Normalization
from pipeline_src.records.whole_files import write_whole
from pipeline_src.training.meters import allocated_bytes
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec
from pipeline_src.training.trainer import Trainer

STEPS, DRAWS = 5, 128
HIDDEN_LAYERS, WIDTH, DROPOUT = 2, 64, 0.5
ARXIV_WIDTH = 128


@dataclass(frozen=True)
class Design:
    """Layouts of the hidden layers, and what they cost."""

    name: str
    layouts: tuple[Layout, Layout]
    bits: tuple[float, float]  # of a code; 0: none is kept
    means: int = 0  # kept of a feature, beside its statistics
    aggregations: int = 0  # more than lean has

    @property
    def saved_bytes(self) -> int:
        """Kept for backward on ogbn-arxiv's shape, by the network and the loss."""
        blocks = math.ceil(ARXIV.num_nodes / ROWS_PER_BLOCK)
        tensors = [8 * ARXIV.num_train, 4]
        for bits in self.bits:
            values = blocks * ROWS_PER_BLOCK * ARXIV_WIDTH
            tensors += [math.ceil(values * bits / 8), *[4 * ARXIV_WIDTH] * 2]
            tensors += [4 * blocks] if bits > 1 else []
            tensors += [4 * ARXIV_WIDTH * self.means] if self.means else []
        return sum(map(allocated_bytes, tensors))


def _alike(name: str, layout: Layout, bits: float, means: int = 0) -> Design:
    return Design(name, (layout, layout), (bits, bits), means)


DESIGNS = (
    _alike("one mean a side (lean INT1)", side_means, 1, 2),
    _alike("3 active levels, a mean of the inactive side", three_and_mean, 2, 1),
    _alike("2 levels a side, rounded to the ends", two_ends, 2),
    _alike("2 levels a side, shared noise", shared_noise(1, False), 2),
    _alike("the same, variance taken off (lean INT2)", shared_noise(1, True), 2),
    _alike("3 active and 2 inactive levels, rounded", three_and_two, 7 / 3),
    _alike("8 levels a side, shared noise (lean INT4)", shared_noise(7, True), 4),
    Design(
        "first hidden layer computed again, then INT4",
        (kept, shared_noise(7, True)),
        (0, 4),
        aggregations=1,
    ),
)


class Hidden(NamedTuple):
    """What forward leaves of a hidden layer."""

    sides: Sides
    normalization: Normalization
    scale: Tensor  # Dropout's: 0 or 1 / (1 - p)

    def output(self, n: Tensor) -> Tensor:
        """The next layer's input from n or its estimate."""
        u = n * self.normalization.weight + self.normalization.bias
        return torch.where(self.sides.active, u * self.scale, 0.0)

    def input_gradient(self, gradient: Tensor, found: Estimate) -> Tensor:
        """Gradient of y from that of the output, as quant/rectified.py has it."""
        passed = torch.where(self.sides.active, gradient * self.scale, 0.0)
        own = passed * found.variance / len(passed)
        product = (passed * found.n).mean(dim=0)
        centred = passed - passed.mean(dim=0) - found.n * product + own
        norm = self.normalization
        return centred * (norm.weight * norm.inverse_std)


class Forward(NamedTuple):
    """A step as far as the gradient of the logits."""

    hidden: list[Hidden]
    of_logits: Tensor


class SmallNetwork:
    """The network that all layouts run in, at one set of parameters."""

    def __init__(self, trainer: Trainer) -> None:
        """Take parameters and graph of a trainer in full precision."""
        self.graph = trainer.graph
        self.aggregation = cast(Aggregation, trainer.aggregation)
        model = cast(GraphNetwork, trainer.model)
        self.convolutions = [cast(SageLayer, one) for one in model.convolutions]
        self.norms = [cast(nn.BatchNorm1d, one) for one in model.norms]

    @torch.no_grad()
    def forward(self, dropout: float, generator: torch.Generator) -> Forward:
        """Through all layers and the loss."""
        x, hidden = self.graph.features, []
        for convolution, norm in zip(self.convolutions, self.norms, strict=False):
            y = convolution.plain(x, self.aggregation)
            mean = y.mean(dim=0)
            inverse_std = (y.var(dim=0, unbiased=False) + norm.eps).rsqrt()
            how = Normalization(mean, inverse_std, norm.weight, norm.bias)
            draw = torch.rand(y.shape, generator=generator)
            scale = (draw >= dropout) / (1 - dropout)
            hidden.append(Hidden(sides_of((y - mean) * inverse_std, how), how, scale))
            x = hidden[-1].output(hidden[-1].sides.n)
        logits = self.convolutions[-1].plain(x, self.aggregation)
        rows = self.graph.train_index
        of_logits = torch.zeros_like(logits)
        wrong = functional.softmax(logits[rows], dim=1)
        wrong -= functional.one_hot(self.graph.labels[rows], wrong.shape[1])
        of_logits[rows] = wrong / len(rows)
        return Forward(hidden, of_logits)

    @torch.no_grad()
    def weight_gradients(
        self, forward: Forward, estimates: list[Estimate]
    ) -> list[Tensor]:
        """Of the two weight matrices of each convolution, from the first one on."""
        gradient = forward.of_logits
        found: list[Tensor] = []
        below = list(zip(self.convolutions[1:], forward.hidden, estimates, strict=True))
        for convolution, hidden, estimate in reversed(below):
            transposed = self.aggregation.transpose(gradient)
            x = hidden.output(estimate.n)
            found[:0] = [transposed.T @ x, gradient.T @ x]
            of_x = transposed @ convolution.neighbor.weight
            of_x += gradient @ convolution.root.weight
            gradient = hidden.input_gradient(of_x, estimate)
        x = self.graph.features
        return [self.aggregation.transpose(gradient).T @ x, gradient.T @ x, *found]


def trained_network(graph: Graph) -> SmallNetwork:
    """After STEPS steps in full precision."""
    model = ModelSpec("sage-3x64", "sage", HIDDEN_LAYERS + 1, WIDTH, DROPOUT, True)
    training = TrainingSpec(STEPS, 0.01, 0.0, 0.5, "cross_entropy")
    method = MethodSpec("fp32", "FP32", "full")
    spec = RunSpec("digits", model, method, training, seeds=(0,), compile="false")
    trainer = Trainer(spec, graph, None, seed=0)
    trainer.model.train()
    for step in range(STEPS):
        trainer.step(step)
    return SmallNetwork(trainer)


def draw_gradients(
    network: SmallNetwork, layouts: tuple[Layout, ...], draws: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Estimated and exact weight gradients of each layer.

    Returns:
        Two lists over layers, of (draws, num_weights).
    """
    estimated, exact = [], []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(draw)
        forward = network.forward(DROPOUT, generator)
        sides = [one.sides for one in forward.hidden]
        noise = [torch.rand(one.n.shape, generator=generator) for one in sides]
        estimates = [
            layout(*where)
            for layout, where in zip(
                layouts, zip(sides, noise, strict=True), strict=True
            )
        ]
        right = [Estimate(one.n) for one in sides]
        estimated.append(_by_layer(network.weight_gradients(forward, estimates)))
        exact.append(_by_layer(network.weight_gradients(forward, right)))
    layers = range(len(network.convolutions))
    return (
        [torch.stack([one[layer] for one in estimated]) for layer in layers],
        [torch.stack([one[layer] for one in exact]) for layer in layers],
    )


def _by_layer(gradients: list[Tensor]) -> list[Tensor]:
    pairs = zip(gradients[::2], gradients[1::2], strict=True)
    return [torch.cat([one.flatten() for one in pair]) for pair in pairs]


def measure_designs(draws: int = DRAWS) -> pd.DataFrame:
    """A row for each design, numbers as they are shown."""
    network = trained_network(digits_graph())
    rows = []
    for design in DESIGNS:
        estimated, exact = draw_gradients(network, design.layouts, draws)
        whole = split_error(torch.cat(estimated, dim=1), torch.cat(exact, dim=1))
        first = split_error(estimated[0], exact[0])
        rows.append(
            {
                "layout": design.name,
                "bits": " and ".join(
                    f"{bits:.3g}" for bits in dict.fromkeys(design.bits)
                ),
                "squared bias": f"{whole.bias:.1e}",
                "± standard error": f"{whole.bias_standard_error:.1e}",
                "variance": f"{whole.variance:.1e}",
                "squared bias, first layer": f"{first.bias:.1e}",
                "± standard error, first layer": f"{first.bias_standard_error:.1e}",
                "saved, arxiv shape [MiB]": f"{design.saved_bytes / 2**20:.2f}",
                "more aggregations": design.aggregations,
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_whole(Path(sys.argv[1]), measure_designs().to_csv(index=False))
