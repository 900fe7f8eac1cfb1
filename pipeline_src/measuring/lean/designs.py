"""What lean's codes might have been: bias and variance of each layout, side by side.

    python -m pipeline_src.measuring.lean.designs \
        results/published/lean_bias.csv results/published/benchmark/training.csv

A layout says how backward estimates n, BatchNorm's normalised input, of every hidden
value; all else of lean follows from that (quant/rectified.py). So layouts are plain
functions on n here, in float32 and without packing, and one network runs them all:
GraphSAGE, 3 layers of 64 with BatchNorm and Dropout, on digits after five steps in full
precision. Ends of blocks are those of lean. Every draw has rounding and Dropout of its
own; the exact gradient has the same Dropout.

Bytes are counted on ogbn-arxiv's shape with layers of 128, as measuring/byte_books.py
counts them. Five levels take 7 bits for three codes, because 5**3 <= 2**7. The time of
what is built is the benchmark's, on the same shape. Accuracy is that of ten trainings
of the small network, the differences paired: with a seed all layouts start from the
same parameters and drop the same activations.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from pipeline_src.gnn.aggregation import Aggregation
from pipeline_src.gnn.models import GraphNetwork, SageLayer
from pipeline_src.graphs.embedded import digits_graph
from pipeline_src.graphs.graph import Graph
from pipeline_src.graphs.sizes import ARXIV
from pipeline_src.measuring.gradient_error import split_error
from pipeline_src.measuring.lean.layouts import (
    ROWS_PER_BLOCK,
    Estimate,
    Layout,
    kept,
    shared_noise,
    side_means,
    three_and_mean,
    three_and_two,
    two_ends,
)
from pipeline_src.measuring.lean.training import (
    EPOCHS,
    Hidden,
    LayoutTrainer,
    hidden_layer,
    small_run,
)
from pipeline_src.records.whole_files import write_whole
from pipeline_src.training.meters import allocated_bytes
from pipeline_src.training.runs import train_seed
from pipeline_src.training.trainer import Trainer

STEPS, DRAWS, SEEDS = 5, 128, 10
HIDDEN_LAYERS, WIDTH, DROPOUT = 2, 64, 0.5
ARXIV_WIDTH = 128
BUILT = ("lean INT1", "lean INT2", "lean INT4")


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
            hidden.append(hidden_layer(y, norm, dropout, generator))
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
    spec = small_run(HIDDEN_LAYERS, WIDTH, DROPOUT, STEPS)
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


def accuracies(layouts: tuple[Layout, ...], seeds: int, epochs: int) -> np.ndarray:
    """Test accuracy of trainings with the layouts in backward, (seeds,) in percent."""
    graph = digits_graph()
    spec = small_run(HIDDEN_LAYERS, WIDTH, DROPOUT, epochs)
    runs = (LayoutTrainer(spec, graph, layouts, seed) for seed in range(seeds))
    return np.array([100 * train_seed(run)[0]["test_accuracy"] for run in runs])


def measure_designs(
    times: dict[str, float], draws: int = DRAWS, seeds: int = SEEDS
) -> pd.DataFrame:
    """A row for each design, numbers as they are shown.

    Args:
        times: of an epoch over PyG eager's, by the names of methods that are built.
        draws: of the gradient's error.
        seeds: paired trainings.
    """
    network = trained_network(digits_graph())
    exact_accuracies = accuracies((kept,) * HIDDEN_LAYERS, seeds, EPOCHS)
    rows = []
    for design in DESIGNS:
        estimated, exact = draw_gradients(network, design.layouts, draws)
        whole = split_error(torch.cat(estimated, dim=1), torch.cat(exact, dim=1))
        first = split_error(estimated[0], exact[0])
        found = accuracies(design.layouts, seeds, EPOCHS)
        low, high = stats.ttest_rel(found, exact_accuracies).confidence_interval(0.95)
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
                "time / PyG eager, arxiv shape": next(
                    (f"{of:.2f}" for name, of in times.items() if name in design.name),
                    "not measured",
                ),
                "test accuracy [%]": f"{found.mean():.2f}",
                "less exact gradients' [points, 95 %]": f"{low:+.2f} to {high:+.2f}",
            }
        )
    return pd.DataFrame(rows)


def benchmark_times(path: Path) -> dict[str, float]:
    """Of each lean method on ogbn-arxiv's shape, from the benchmark's table."""
    table = pd.read_csv(path)
    table = table[(table["graph"] == "arxiv_shape") & table["method"].isin(BUILT)]
    return dict(zip(table["method"], table["epoch_time_ratio"], strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    designs = measure_designs(benchmark_times(Path(sys.argv[2])))
    write_whole(Path(sys.argv[1]), designs.to_csv(index=False))
