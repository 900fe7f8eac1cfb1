"""Trainings with a layout's estimates in backward."""

from dataclasses import replace

import pytest
import torch

from pipeline_src.graphs.embedded import digits_graph
from pipeline_src.measuring.lean.layouts import Estimate, kept, side_means
from pipeline_src.measuring.lean.training import LayoutTrainer, small_run
from pipeline_src.training.trainer import Trainer

WIDTH = 16


@pytest.fixture(scope="module")
def graph():
    return digits_graph()


def unclipped(hidden_layers, dropout):
    spec = small_run(hidden_layers, WIDTH, dropout, epochs=1)
    return replace(spec, training=replace(spec.training, gradient_clip=None))


def gradients_of_a_step(trainer):
    trainer.optimizer.step = lambda: None  # what the gradients would do
    loss = trainer.step(0)
    return loss, {name: p.grad for name, p in trainer.model.named_parameters()}


def off(found, expected):
    return {
        name: float((found[name] - one).norm() / one.norm())
        for name, one in expected.items()
        # A bias before BatchNorm moves nothing: its gradient is rounding errors.
        if not (name.endswith("neighbor.bias") and "2" not in name)
    }


def test_gradients_are_those_of_torch_where_all_is_known(graph):
    """Without Dropout, which torch draws elsewhere; the running statistics too."""
    spec = unclipped(2, 0.0)
    plain, layout = (
        Trainer(spec, graph, None, 0),
        LayoutTrainer(spec, graph, (kept,) * 2, 0),
    )
    loss, expected = gradients_of_a_step(plain)
    again, found = gradients_of_a_step(layout)
    eps = torch.finfo(torch.float32).eps
    assert abs(loss - again) <= graph.num_nodes * eps * loss
    # Sums over all nodes, through three layers.
    assert max(off(found, expected).values()) <= 3 * graph.num_nodes * eps
    for one, other in zip(plain.model.buffers(), layout.model.buffers(), strict=True):
        assert torch.allclose(one, other, rtol=graph.num_nodes * eps, atol=eps)


def test_what_a_layout_loses_is_lost_in_backward_and_not_in_forward(graph):
    spec = unclipped(2, 0.5)
    exact = LayoutTrainer(spec, graph, (kept,) * 2, 0)
    means = LayoutTrainer(spec, graph, (side_means,) * 2, 0)
    loss, expected = gradients_of_a_step(exact)
    again, found = gradients_of_a_step(means)
    assert abs(loss - again) <= graph.num_nodes * torch.finfo(torch.float32).eps * loss
    lost = off(found, expected)
    # No estimate enters these.
    exact_ones = {"norms.1.bias", "convolutions.2.neighbor.bias"}
    bound = 3 * graph.num_nodes * torch.finfo(torch.float32).eps
    assert all((lost[name] > bound) == (name not in exact_ones) for name in lost)


def test_the_estimate_reaches_the_convolution_behind_it(graph):
    """N taken for twice what it is: the last convolution's gradient is off by it."""
    spec = unclipped(1, 0.0)

    def doubled(sides, noise):
        return Estimate(2 * sides.n)

    _, expected = gradients_of_a_step(LayoutTrainer(spec, graph, (kept,), 0))
    _, found = gradients_of_a_step(LayoutTrainer(spec, graph, (doubled,), 0))
    # BatchNorm's bias is 0 at first, so the layer's output is twice as large as well.
    name = "convolutions.1.root.weight"
    bound = 3 * graph.num_nodes * torch.finfo(torch.float32).eps
    off_by = found[name] - 2 * expected[name]
    assert off_by.norm() <= bound * 2 * expected[name].norm()
