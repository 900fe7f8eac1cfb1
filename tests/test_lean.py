"""The lean network: its arithmetic against autograd, its noise, its books."""

import math
import statistics
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional

from pipeline_src.experiment.meters import allocated_bytes, measure_memory
from pipeline_src.gnn import lean
from pipeline_src.gnn.embedded_graphs import synthetic_graph
from pipeline_src.gnn.graphs import adjacency_from_edges
from pipeline_src.gnn.lean import LeanRecipe
from pipeline_src.gnn.models import GraphNetwork
from pipeline_src.quant.noise import row_keys, uniform_pair

GRAPH = synthetic_graph(
    num_nodes=123, num_edges=900, num_features=20, num_classes=5, seed=1
)
RECIPE = LeanRecipe(bits=2, rows_per_block=8, compile="false")
LAYERS = ["sage", "gcn"]


def network(layer, recipe=RECIPE, dropout=0.5, batch_norm=True, num_layers=3):
    """BatchNorm weights of both signs and one 0, so that no sign is special."""
    torch.manual_seed(0)
    model = GraphNetwork(
        layer, 20, 16, 5, num_layers, dropout, batch_norm, lean=recipe
    ).train()
    with torch.no_grad():
        for norm in model.norms:
            norm.weight.normal_()
            norm.bias.normal_()
            norm.weight[3] = 0.0
    return model


def seeds_of(model, step=0):
    generator = torch.Generator().manual_seed(step)
    shape = (model.num_seeds,)
    return torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)


def loss_of(logits):
    labels = GRAPH.labels[GRAPH.train_index]
    return functional.cross_entropy(logits[GRAPH.train_index], labels)


def gradients(model, seeds, adjacency=GRAPH.adjacency):
    model.zero_grad(set_to_none=True)
    logits = model(GRAPH.features, model.aggregation(adjacency), seeds)
    loss_of(logits).backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


def autograd_gradients(model, seeds, adjacency=GRAPH.adjacency):
    """The same network with PyTorch's operations and the masks of these seeds."""
    model.zero_grad(set_to_none=True)
    aggregation = model.aggregation(adjacency)
    x = GRAPH.features
    for i, convolution in enumerate(model.convolutions):
        x = convolution.plain(x, aggregation)
        if i == len(model.convolutions) - 1:
            break
        if len(model.norms):
            norm = model.norms[i]
            x = functional.batch_norm(x, None, None, norm.weight, norm.bias, True)
        keys = row_keys(seeds[i], len(x))[:, None]
        columns = torch.arange(x.shape[1], dtype=torch.int32)
        survives = uniform_pair(keys, columns)[1] >= model.dropout
        x = torch.relu(x) * survives / (1 - model.dropout)
    loss_of(x).backward()
    return x.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


@dataclass
class ExactCodes:
    """Stands in for RectifiedCodes and keeps everything in full."""

    n: torch.Tensor
    kept: torch.Tensor
    h: torch.Tensor
    normalization: object
    factor: float
    low: torch.Tensor
    high: torch.Tensor

    @property
    def num_rows(self):
        return len(self.n)

    def outputs(self):
        for first in range(0, len(self.n), 48):
            rows = slice(first, min(first + 48, len(self.n)))
            yield rows, self.h[rows]

    def gradient_sums(self, gradient):
        passed = gradient * self.kept * self.factor
        return passed.sum(dim=0), (passed * self.n).sum(dim=0)

    def backpropagate(self, gradient, mean_gradient, mean_product):
        passed = gradient * self.kept * self.factor
        norm = self.normalization
        centred = passed - mean_gradient - self.n * mean_product
        gradient.copy_(centred * norm.weight * norm.inverse_std)


def encode_exactly(y, norm, seed, dropout, bits, rows_per_block, compile):
    n = (y - norm.mean) * norm.inverse_std
    u = n * norm.weight + norm.bias
    keys = row_keys(seed, len(y))[:, None]
    columns = torch.arange(y.shape[1], dtype=torch.int32)
    kept = (u > 0) & (uniform_pair(keys, columns)[1] >= dropout)
    factor = 1 / (1 - dropout)
    y.copy_(u * kept * factor)
    return ExactCodes(n, kept, y.clone(), norm, factor, n.amin(), n.amax())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("directed", [False, True])
def test_without_rounding_gradients_are_autograds(
    layer, batch_norm, num_layers, directed, monkeypatch
):
    """To float32 rounding: sums of up to 128 terms through up to 3 layers.

    Compared by the norm of all gradients of a parameter, which for a bias in front
    of BatchNorm is 0 in exact arithmetic: hence the part that does not scale.
    """
    monkeypatch.setattr(lean, "encode", encode_exactly)
    adjacency = GRAPH.adjacency
    if directed:
        edges = torch.randint(
            0, 123, (2, 700), generator=torch.Generator().manual_seed(4)
        )
        adjacency = adjacency_from_edges(*edges.numpy(), 123, symmetrize=False)
        assert not adjacency.symmetric
    model = network(layer, batch_norm=batch_norm, num_layers=num_layers)
    seeds = seeds_of(model)
    logits, found = gradients(model, seeds, adjacency)
    expected_logits, expected = autograd_gradients(model, seeds, adjacency)
    epsilon = 3 * 128 * 2.0**-24
    scale = expected_logits.abs().max()
    assert torch.all((logits - expected_logits).abs() <= epsilon * scale)
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        difference = (found[name] - gradient).norm()
        assert difference <= epsilon * largest, name


@pytest.mark.parametrize("layer", LAYERS)
def test_running_statistics_are_batch_norms(layer):
    model, other = network(layer), network(layer, recipe=None)
    model(GRAPH.features, model.aggregation(GRAPH.adjacency), seeds_of(model))
    torch.manual_seed(9)
    other(GRAPH.features, other.aggregation(GRAPH.adjacency))
    # The first layer alone sees no Dropout, so that both have the same input.
    for name, buffer in other.norms[0].named_buffers():
        same = dict(model.norms[0].named_buffers())[name]
        assert torch.allclose(same, buffer, rtol=128 * 2.0**-24, atol=2.0**-22), name


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("bits", [2, 4])
def test_gradient_is_unbiased_without_batch_norm(layer, bits):
    """Mean over n draws within the standard error, for all entries at once."""
    n = 300
    recipe = LeanRecipe(bits, 8, "false")
    model = network(layer, recipe, dropout=0.0, batch_norm=False)
    _, expected = autograd_gradients(model, seeds_of(model))
    draws = [gradients(model, seeds_of(model, step))[1] for step in range(n)]
    entries = sum(gradient.numel() for gradient in expected.values())
    bound = -statistics.NormalDist().inv_cdf(1e-6 / entries / 2)
    for name, gradient in expected.items():
        sample = torch.stack([draw[name] for draw in draws]).double()
        error = (sample.mean(dim=0) - gradient).abs()
        noise = bound * sample.std(dim=0) / math.sqrt(n)
        assert torch.all(error <= noise + 123 * 2.0**-22), name


@pytest.mark.parametrize("layer", LAYERS)
def test_first_layer_and_logits_carry_no_noise_but_from_above(layer):
    """With one hidden layer and no BatchNorm the first weight's gradient is exact."""
    model = network(layer, dropout=0.0, batch_norm=False, num_layers=2)
    _, expected = autograd_gradients(model, seeds_of(model))
    _, found = gradients(model, seeds_of(model))
    for name, gradient in expected.items():
        if name.startswith("convolutions.0"):
            assert torch.allclose(found[name], gradient, rtol=0, atol=128 * 2.0**-24)


@pytest.mark.parametrize("layer", LAYERS)
def test_books_hold_codes_and_nothing_else(layer):
    """Two hidden layers of 16 features: codes, two ends per block, statistics."""
    model = network(layer)
    aggregation = model.aggregation(GRAPH.adjacency)
    seeds = seeds_of(model)

    def forward():
        return model(GRAPH.features, aggregation, seeds)

    forward()
    logits, use = measure_memory(forward, torch.device("cpu"))
    blocks = math.ceil(123 / 8)
    per_layer = allocated_bytes(blocks * 8 * 16 // 4) + allocated_bytes(4 * blocks)
    per_layer += 2 * allocated_bytes(4 * 16)  # mean, inverse standard deviation
    assert use.held - allocated_bytes(logits.nbytes) == 2 * per_layer


def test_second_backward_is_refused():
    model = network("sage")
    logits = model(GRAPH.features, model.aggregation(GRAPH.adjacency), seeds_of(model))
    loss = loss_of(logits)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward can run only once"):
        loss.backward()


def test_values_that_are_not_finite_name_the_layer():
    model = network("sage")
    x = GRAPH.features.clone()
    x[5, 2] = math.nan
    model(x, model.aggregation(GRAPH.adjacency), seeds_of(model))
    with pytest.raises(FloatingPointError, match=r"activations layer1\.codes, layer2"):
        model.check_finite()
