"""A class takes a step before it is trained, and its nodes hear from the right ones."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline_src.gnn.pyg.class_network import ClassNetwork
from pipeline_src.gnn.pyg.technique import Technique
from pipeline_src.gnn.shape import ClassShape
from pipeline_src.graphs.graph import adjacency_from_edges
from pipeline_src.training.class_models import NUM_FEATURES, check_class_model
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec

NODES, WIDTH, CLASSES = 6, 5, 3
# Directed, and no edge twice: 0 -> 1 means that 1 hears from 0.
SOURCE, TARGET = np.array([[0, 0, 2, 5, 4], [1, 2, 1, 0, 5]])


class Sums(nn.Module):
    """The sum over senders, through one matrix; or a failure."""

    def __init__(self, in_channels, out_channels, fails=False):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)
        self.fails = fails

    def forward(self, x, edges):
        if self.fails:
            raise KeyError("stubborn")
        y = self.linear(x)
        if edges.layout == torch.sparse_csr:
            return edges @ y
        return torch.zeros_like(y).index_add(0, edges[1], y[edges[0]])


def step_of(arguments):
    entry = {"class": f"{__name__}.Sums", "arguments": arguments}
    plan = TrainingSpec(1, 0.01, 0.0, None, "cross_entropy")
    model, full = ModelSpec.from_config("net", entry), MethodSpec("f", "F", "full")
    return RunSpec("synthetic", model, full, plan, (0,), "cpu", "false")


@pytest.mark.parametrize("form", ["edges", "matrix"])
@pytest.mark.parametrize("training", [True, False])
def test_a_node_hears_from_those_who_send_to_it(form, training):
    """One edge after the other; a sum of two terms is the same in either order."""
    shape = ClassShape(f"{__name__}.Sums", "{}", form, WIDTH, CLASSES)
    network = ClassNetwork(shape, Technique()).train(training)
    x = torch.randn(NODES, WIDTH)
    adjacency = adjacency_from_edges(SOURCE, TARGET, NODES, symmetrize=False)
    found = network(x, network.aggregation(adjacency))
    y = network.model.linear(x)
    expected = torch.zeros(NODES, CLASSES)
    for source, target in zip(SOURCE, TARGET, strict=True):
        expected[target] += y[source]
    assert torch.equal(found, expected)


def test_a_step_is_taken_before_anything_trains():
    weights = (NUM_FEATURES + 1) * 4  # of a matrix and a bias, for four classes
    assert check_class_model(step_of({})) == weights
    with pytest.raises(ValueError, match=r"^models.net cannot take a step .*'fial'"):
        check_class_model(step_of({"fial": True}))
    with pytest.raises(ValueError, match=r"16 features and 4 .*KeyError: 'stubborn'"):
        check_class_model(step_of({"fails": True}))
