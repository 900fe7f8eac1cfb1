"""Rows that are gathered when they are asked for."""

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn

from pipeline_src.compression.attachment import compress
from pipeline_src.compression.config import CompressionConfig
from pipeline_src.compression.edges import reducing
from pipeline_src.compression.edges import rows as edges_module
from pipeline_src.compression.edges.receivers import Receivers, receivers_of
from pipeline_src.compression.edges.rows import Rows
from pipeline_src.training.meters import measure_memory

NODES, EDGES, WIDTH = 50, 400, 8
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(edges_module, "MIN_EDGE_VALUES", 1)
    monkeypatch.setattr(reducing, "RANGE_VALUES", 20 * WIDTH)


def index(seed=0, high=NODES - 5):
    return torch.randint(high, (EDGES,), generator=torch.Generator().manual_seed(seed))


class Messages(nn.Module):
    """A function of gathered rows as a module, so that a scope is open around it."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x):
        return self.function(self, x)


def summed(messages, receivers):
    shape = (NODES, *messages.shape[1:])
    places = receivers.view(-1, *[1] * (messages.dim() - 1)).expand_as(messages)
    return messages.new_zeros(shape).scatter_add_(0, places, messages)


def largest(messages, receivers):
    shape = (NODES, *messages.shape[1:])
    places = receivers.view(-1, *[1] * (messages.dim() - 1)).expand_as(messages)
    zeros = messages.new_zeros(shape)
    return zeros.scatter_reduce_(0, places, messages, "amax", include_self=False)


SENDERS, RECEIVERS = index(1), index(2)
EDGE_DATA = torch.randn(EDGES, 1, generator=torch.Generator().manual_seed(3))
FUNCTIONS = {
    "sum": lambda m, x: summed(x[SENDERS], RECEIVERS),
    "weighted": lambda m, x: summed(x[SENDERS] * EDGE_DATA, RECEIVERS),
    "difference": lambda m, x: summed((x[SENDERS] - x[RECEIVERS]).exp(), RECEIVERS),
    "product with itself": lambda m, x: summed(x[SENDERS] * x[SENDERS], RECEIVERS),
    "maximum": lambda m, x: largest(x[SENDERS], RECEIVERS),
    "mapped": lambda m, x: summed(x[SENDERS] @ m.weight, RECEIVERS),
    "joined": lambda m, x: summed(torch.cat([x[SENDERS], x[RECEIVERS]], -1), RECEIVERS),
    "shapes": lambda m, x: summed(x[SENDERS].view(-1, 2, 4).sum(-1), RECEIVERS),
    "named size": lambda m, x: summed(x[SENDERS].view(EDGES, 2, 4) * 2, RECEIVERS),
    "never summed": lambda m, x: x[SENDERS].tanh(),
    "unknown": lambda m, x: torch.fft.rfft(x[SENDERS]).abs().sum(-1),
    "over edges": lambda m, x: x[SENDERS].sum(0),
    "joined edges": lambda m, x: torch.cat([x[SENDERS], x[RECEIVERS]]).sum(-1),
    "softmax of all": lambda m, x: summed(x[SENDERS].softmax(0), RECEIVERS),
    "used twice": lambda m, x: (
        summed(x[SENDERS], RECEIVERS) + summed(x[SENDERS].relu(), RECEIVERS)
    ),
    "no gradient": lambda m, x: summed(x[SENDERS].detach(), RECEIVERS) + x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_equal_and_gradients_are_pytorchs(name, dtype):
    torch.manual_seed(0)
    module = Messages(FUNCTIONS[name]).to(dtype)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(NODES, WIDTH, generator=generator).to(dtype)
    found = []
    for is_compressed in (False, True):
        if is_compressed:
            compress(module, CompressionConfig(bits=32, min_numel=1))
        input = x.clone().requires_grad_()
        module.weight.grad = None
        output = module(input)
        assert type(output) is torch.Tensor
        (
            output * torch.linspace(-1, 1, output.numel()).view_as(output)
        ).sum().backward()
        found.append((output.detach(), input.grad, module.weight.grad))
    (output, *expected), (other, *others) = found
    assert torch.equal(output, other)
    assert expected[0].abs().max() > 0, "nothing to compare"
    for mine, theirs in zip(expected, others, strict=True):
        if mine is None:
            assert theirs is None
            continue
        bound = EDGES * torch.finfo(dtype).eps * float(mine.abs().max())
        assert (mine - theirs).abs().max() <= bound


EXTREMES = {
    "gathered": lambda x: x[SENDERS],
    "scaled": lambda x: x[SENDERS] * EDGE_DATA.sign(),
    "of both": lambda x: x[SENDERS] - x[RECEIVERS],
    "activated": lambda x: x[SENDERS].relu(),
    "product": lambda x: x[SENDERS] * x[RECEIVERS],
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("reduce", ["amax", "amin"])
@pytest.mark.parametrize("before", [0.0, 0.5])
def test_extremes_with_ties_have_pytorchs_gradients(name, reduce, before):
    """Whole numbers, many equal to each other, and some to what was there before.

    PyTorch counts that as one of those that share the gradient.
    """

    def function(module, x):
        messages = EXTREMES[name](x)
        output = messages.new_full((NODES, WIDTH), before)
        places = RECEIVERS[:, None].expand(messages.shape)
        return output.scatter_reduce_(0, places, messages, reduce, include_self=False)

    generator = torch.Generator().manual_seed(6)
    values = torch.randint(-2, 3, (NODES, WIDTH), generator=generator) / 2
    module, found = Messages(function), []
    for is_compressed in (False, True):
        if is_compressed:  # at two bits, since what is compared must be exact
            compress(module, CompressionConfig(bits=2, min_numel=1))
        x = values.clone().requires_grad_()
        output = module(x * 1)
        weights = torch.linspace(-1, 1, output.numel()).view_as(output)
        (output * weights).sum().backward()
        found.append((output.detach(), x.grad))
    (output, expected), (other, gradient) = found
    assert torch.equal(output, other)
    assert (output == before).any()
    assert expected.abs().max() > 0
    bound = EDGES * EPS * float(expected.abs().max())
    assert (gradient - expected).abs().max() <= bound


AGGREGATIONS = (
    *("sum", "mean", "max", "min", "mul", "var", "std", "softmax", "median"),
    *("powermean", ["max", "mean", "std", "min"]),
)


@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=str)
def test_aggregations_of_gathered_rows_have_pytorchs_gradients(aggregation):
    """Half of the features are 0, as behind a ReLU: equal values are many."""
    receivers = RECEIVERS.sort().values  # the median asks for it
    edges = torch.stack([SENDERS, receivers])
    torch.manual_seed(0)
    model = pyg.SAGEConv(WIDTH, 4, aggr=aggregation)
    values = torch.randn(NODES, WIDTH, generator=torch.Generator().manual_seed(7))
    found = []
    for is_compressed in (False, True):
        if is_compressed:
            compress(model, CompressionConfig(bits=32, min_numel=1))
        model.zero_grad()
        x = values.relu().requires_grad_()
        output = model(x * 1, edges)
        weights = torch.linspace(-1, 1, output.numel()).view_as(output)
        (output * weights).sum().backward()
        gradients = [x.grad, *(one.grad for one in model.parameters())]
        found.append((output.detach(), gradients))
    (output, expected), (other, gradients) = found
    assert torch.equal(output, other)
    for mine, theirs in zip(expected, gradients, strict=True):
        assert (mine - theirs).abs().max() <= EDGES * EPS * mine.abs().max()


def test_messages_are_not_whole(monkeypatch):
    """What is alive at the most grows with nodes and a range, not with edges."""
    monkeypatch.setattr(reducing, "RANGE_VALUES", 2000 * WIDTH)
    peaks = []
    for num_edges in (EDGES * 50, EDGES * 100):
        senders = torch.randint(NODES, (num_edges,))
        receivers = torch.randint(NODES, (num_edges,)).sort().values
        module = Messages(lambda m, x, s=senders, r=receivers: summed(x[s].exp(), r))
        compress(module, CompressionConfig())
        x = torch.randn(NODES, WIDTH, requires_grad=True)
        module(x).sum().backward()
        _, use = measure_memory(
            lambda m=module, x=x: m(x).sum().backward(), torch.device("cpu")
        )
        peaks.append(use.peak)
    bytes_of_messages = EDGES * 50 * WIDTH * 4
    assert peaks[1] - peaks[0] < bytes_of_messages / 4


def test_a_gathered_tensor_answers_questions_without_being_made():
    def ask(module, x):
        rows = x[SENDERS]
        assert type(rows) is Rows
        assert rows.shape == (EDGES, WIDTH)
        assert (rows.size(-1), rows.dim(), len(rows)) == (WIDTH, 2, EDGES)
        assert rows.dtype == x.dtype
        assert rows.device == x.device
        assert rows.requires_grad
        return summed(rows, RECEIVERS)

    compress(Messages(ask))(torch.randn(NODES, WIDTH, requires_grad=True))


@pytest.mark.parametrize("is_sorted", [False, True])
def test_receivers_are_sorted_stably_and_cut_between_nodes(is_sorted):
    receivers = index(4).sort().values if is_sorted else index(4)
    found = Receivers.of(receivers, NODES)
    assert (found.order is None) == is_sorted
    seen = []
    for one in found.ranges(30):
        of_range = found.take(receivers, one.edges)
        assert bool(((of_range >= one.nodes.start) & (of_range < one.nodes.stop)).all())
        seen.append(found.take(torch.arange(EDGES), one.edges))
    places = torch.cat(seen)
    assert torch.equal(places, torch.argsort(receivers, stable=True))
    assert sum(one.nodes.stop - one.nodes.start for one in found.ranges(30)) == NODES


def test_an_index_is_sorted_once_while_it_lives_and_is_unchanged(monkeypatch):
    calls = []
    original = Receivers.of.__func__
    monkeypatch.setattr(
        Receivers,
        "of",
        classmethod(lambda cls, *a: calls.append(1) or original(cls, *a)),
    )
    both = torch.stack([index(1), index(2)])
    assert receivers_of(both[1], NODES) is receivers_of(both[1], NODES)
    assert len(calls) == 1
    both[1, 0] = 3
    assert int(receivers_of(both[1], NODES).pointer[-1]) == EDGES
    assert len(calls) == 2


def test_an_index_that_was_changed_is_refused():
    senders = SENDERS.clone()
    module = compress(Messages(lambda m, x: summed(x[senders].exp(), RECEIVERS)))
    loss = module(torch.randn(NODES, WIDTH, requires_grad=True)).sum()
    senders[0] += 1
    with pytest.raises(RuntimeError, match="an index of edges"):
        loss.backward()


class Attention(nn.Module):
    """Scores from features, and features weighed by scores: a product with a past."""

    def __init__(self, over_edges):
        super().__init__()
        self.over_edges = over_edges
        self.first = nn.Linear(WIDTH, 16)
        self.score = nn.Parameter(torch.randn(16))

    def forward(self, x):
        hidden = self.first(x)
        scores = (hidden * self.score).sum(-1, keepdim=True)
        if not self.over_edges:
            return hidden * scores
        return summed(hidden[SENDERS] * scores[SENDERS], RECEIVERS)


@pytest.mark.parametrize("over_edges", [False, True])
def test_a_product_of_two_with_a_past_has_noise_of_its_own(over_edges):
    """The gradient of the scores' weights multiplies hidden values twice."""
    draws = 200
    torch.manual_seed(0)
    module = Attention(over_edges)
    x = torch.randn(NODES, WIDTH)

    def gradient():
        module.zero_grad()
        output = module(x)
        (
            output * torch.linspace(-1, 1, output.numel()).view_as(output)
        ).sum().backward()
        return module.score.grad.clone()

    truth = gradient()
    compress(module, CompressionConfig(bits=2, min_numel=1))
    found = torch.stack([gradient() for _ in range(draws)])
    error = (found.mean(dim=0) - truth) / (found.std(dim=0) / draws**0.5)
    # 16 standard errors; the mean square of normal ones has a spread of sqrt(2 / 16).
    assert float(error.square().mean()) < 1 + 5 * (2 / 16) ** 0.5


@pytest.mark.parametrize("is_changed", [False, True])
def test_layers_that_make_equal_indices_share_one(is_changed, monkeypatch):
    """As GATConv does, which adds loops to the edges in each layer."""
    seen = []

    def spy(index, num_nodes):
        seen.append(index)
        return receivers_of(index, num_nodes)

    monkeypatch.setattr(edges_module, "receivers_of", spy)

    def layers(module, x):
        first, second = RECEIVERS.clone(), RECEIVERS.clone()
        second[0] = (second[0] + is_changed) % NODES
        x = summed(x[SENDERS.clone()] * x[first], first)
        return summed(x[SENDERS.clone()], second)

    x = torch.randn(NODES, WIDTH, requires_grad=True)
    module = Messages(layers)
    output = module(x)
    (truth,) = torch.autograd.grad(output.sum(), x)
    found = compress(module, CompressionConfig(bits=32, min_numel=1))(x)
    assert torch.equal(found, output)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert (gradient - truth).abs().max() <= EDGES * EPS * truth.abs().max()
    assert (seen[0] is seen[1]) is not is_changed
