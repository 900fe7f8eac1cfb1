"""Training on the entries that are not zero: a dense product is the oracle."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from pipeline_src.features.training import MOST_ENTRIES, train
from pipeline_src.gnn.feature_network import FeatureNetwork
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.graphs.sparse_features import SparseFeatures
from pipeline_src.quant.feature_store import FeatureStore, RowPacking

NUM_ROWS, NUM_FEATURES, WIDTH = 40, 30, 5
ROUNDING = 2.0**-24  # of float32


def sparse_matrix(density=0.1, seed=0):
    """With an empty row and an empty column."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(NUM_ROWS, NUM_FEATURES, generator=generator)
    x *= torch.rand(x.shape, generator=generator) < density
    x[3], x[:, 7] = 0, 0
    return x


def weight_of(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(WIDTH, NUM_FEATURES, generator=generator)


def error_bound(x, y):
    """Of a product of two matrices summed in any order, doubled for two products."""
    terms = x.shape[1]
    return 2 * terms * ROUNDING * (x.abs() @ y.abs())


def test_product_and_gradient_are_those_of_a_dense_layer():
    x, weight = sparse_matrix(), weight_of().requires_grad_()
    output = SparseFeatures.of(x).linear(weight, 0.5, training=False)
    expected = functional.linear(x, weight)
    assert ((output - expected).abs() <= error_bound(x, weight.detach().t())).all()

    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    (of_sparse,) = torch.autograd.grad(output, weight, gradient)
    (of_dense,) = torch.autograd.grad(expected, weight, gradient)
    assert ((of_sparse - of_dense).abs() <= error_bound(gradient.t(), x)).all()


@pytest.mark.parametrize("dropout", [0.0, 0.5, 0.6])
def test_dropout_drops_or_scales_each_entry(dropout):
    """Read through the identity; each value is 0 or the entry over what is kept."""
    torch.manual_seed(0)
    x = sparse_matrix(density=0.5)
    features, identity = SparseFeatures.of(x), torch.eye(NUM_FEATURES)
    draws = torch.stack(
        [features.linear(identity, dropout, training=True) for _ in range(400)]
    )
    scaled = x / (1 - dropout)
    off = (draws - scaled).abs() > 2 * ROUNDING * scaled
    assert (draws[off] == 0).all()
    kept = (~off[:, x > 0]).double().mean()
    count = 400 * int((x > 0).sum())
    spread = (dropout * (1 - dropout) / count) ** 0.5
    assert abs(float(kept) - (1 - dropout)) <= 5 * spread


def test_backward_drops_what_forward_dropped():
    torch.manual_seed(0)
    x = sparse_matrix(density=0.5)
    weight = torch.eye(NUM_FEATURES).requires_grad_()
    output = SparseFeatures.of(x).linear(weight, 0.5, training=True)
    # sum of all outputs: the gradient of each weight is its column of what was kept
    output.sum().backward()
    expected = output.detach().sum(dim=0).expand(NUM_FEATURES, -1)
    bound = NUM_ROWS * 2 * ROUNDING * expected
    assert ((weight.grad - expected).abs() <= bound).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_packed_rows_without_negative_values_stay_as_sparse(bits):
    """So that fine-tuning on decoded features costs no more than training."""
    x = sparse_matrix()
    decoded = FeatureStore.pack(x, (bits,), RowPacking(compile="false")).decode()
    assert (decoded[x == 0] == 0).all()


def sparse_graph(seed=1):
    """A synthetic graph of which a tenth of the features is left."""
    graph = synthetic_graph(
        num_nodes=200, num_edges=1600, num_features=40, num_classes=4, seed=seed
    )
    generator = torch.Generator().manual_seed(0)
    graph.features.mul_(torch.rand(graph.features.shape, generator=generator) < 0.1)
    return graph


@pytest.mark.parametrize("model", ["agnn", "gat"])
def test_networks_train_alike_on_sparse_and_dense_input(model, monkeypatch):
    """Without dropout, whose draws differ, both ways are the same function.

    In doubles, whose rounding, amplified by a few steps, stays far below the tolerance;
    GCN's backward has no doubles, but its first layer is the same code.
    """
    graph = sparse_graph()
    graph = replace(graph, features=graph.features.double())
    weights = {}
    for most in (0.0, MOST_ENTRIES):
        monkeypatch.setattr("pipeline_src.features.training.MOST_ENTRIES", most)
        torch.manual_seed(0)
        net = FeatureNetwork(model, graph.num_features, graph.num_classes).double()
        net.dropouts = (0.0,) * net.num_layers
        plan = MessagePlan.of(graph.adjacency, None, net.gathered_width)
        fit = train(net, graph, plan, 5)
        weights[most] = [fit, *(p.detach().clone() for p in net.parameters())]
    one, other = weights.values()
    assert one[0] == other[0]
    for ours, theirs in zip(one[1:], other[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
