"""A norm inside a compressed network does as nn.BatchNorm1d in that state does."""

import copy
import itertools
import math
import statistics

import pytest
import torch
from torch import nn

from pipeline_src.gnn.aggregation import mean_aggregation
from pipeline_src.gnn.batch_norm import BatchNorm, move_running
from pipeline_src.gnn.lean.recipe import LeanRecipe
from pipeline_src.gnn.models import GraphNetwork
from pipeline_src.gnn.shape import NetworkShape
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.quant.compressor import Compressor
from pipeline_src.quant.rectified import RectifiedCoder

NODES, FEATURES, HIDDEN, CLASSES = 40, 5, 8, 3
GRAPH = synthetic_graph(NODES, 150, FEATURES, CLASSES, seed=2)
AGGREGATION = mean_aggregation(GRAPH.adjacency)
POLICIES = ("exact", "lean")
STATES = [
    {"training": training, "momentum": momentum, "tracks": tracks, "affine": affine}
    for training, momentum, tracks, affine in itertools.product(
        (True, False),
        (0.1, None, 0.0),
        ("yes", "never", "stopped"),
        ("both", "weight", "bias", "none"),
    )
]


def network(policy, bits=32, coder=None):
    """A hidden layer, and values of the norm that are no defaults."""
    torch.manual_seed(0)
    keeper = None
    if policy == "exact":

        def keeper(name, width, may_project):
            return Compressor(bits, width, compile="false")

    if policy == "lean":
        keeper = LeanRecipe(
            (coder or Compressor(bits, HIDDEN, compile="false"),), 8, compile="false"
        )
    shape = NetworkShape("sage", FEATURES, HIDDEN, CLASSES, 2, 0.0, True)
    return GraphNetwork(shape, keeper, compile="false").train()


def set_norm(model, training, momentum, tracks, affine):
    """`stopped`: running statistics are there, and are no longer tracked."""
    norm = nn.BatchNorm1d(
        HIDDEN,
        momentum=momentum,
        affine=affine != "none",
        track_running_stats=tracks != "never",
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in norm.parameters():
            tensor.normal_(generator=generator)
        if norm.running_mean is not None:
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2.0, generator=generator)
    norm.track_running_stats = tracks == "yes"
    if affine == "weight":
        norm.bias = None
    if affine == "bias":
        norm.weight = None
    model.norms[0] = norm.train(training)
    return model


def step(model, seed=0):
    """Logits, gradients, and buffers of the norm after one step."""
    model.zero_grad(set_to_none=True)
    seeds = torch.arange(model.num_seeds, dtype=torch.int32) + 100 * seed
    x = GRAPH.features.clone().requires_grad_()
    logits = model(x, AGGREGATION, seeds)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.norms[0].named_buffers()}
    return {"logits": logits.detach(), "x": x.grad, **found, **buffers}


def close(found, expected):
    """To the rounding of sums over nodes through two layers.

    Compared by the norm: the gradient of a bias in front of BatchNorm is a sum that
    is 0 in exact arithmetic.
    """
    counts = [name for name in expected if name == "num_batches_tracked"]
    assert all(torch.equal(found.pop(name), expected.pop(name)) for name in counts)
    largest = max(value.norm() for value in expected.values())
    for name, value in expected.items():
        error = (found[name] - value).norm()
        assert error <= 2 * NODES * 2.0**-24 * largest, name


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "state", STATES, ids=lambda one: "-".join(map(str, one.values()))
)
def test_every_state_of_a_norm_is_that_of_pytorch(policy, state):
    """Twice, because a mean over all batches needs a second one."""
    compressed = set_norm(network(policy), **state)
    plain = set_norm(network("full"), **state)
    for _ in range(2):
        found, expected = step(compressed), step(plain)
        assert found.keys() == expected.keys()
        close(found, expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_by_running_statistics_are_unbiased(policy):
    """They are linear in what is kept, so the mean of n draws is the gradient."""
    n = 300
    state = {"training": False, "momentum": 0.1, "tracks": "yes", "affine": "both"}
    expected = step(set_norm(network("full"), **state))
    coder = RectifiedCoder(4, 8)
    model = set_norm(network(policy, 2, coder), **state)
    draws = [step(model, seed) for seed in range(n)]
    entries = sum(value.numel() for value in expected.values())
    bound = -statistics.NormalDist().inv_cdf(1e-6 / entries / 2)
    for name, value in expected.items():
        sample = torch.stack([draw[name] for draw in draws]).double()
        error = (sample.mean(dim=0) - value).abs()
        noise = bound * sample.std(dim=0) / math.sqrt(n)
        # Values below 16 in sums over nodes.
        assert torch.all(error <= noise + 16 * NODES * 2.0**-24), name


@pytest.mark.parametrize("policy", ["full", *POLICIES])
@pytest.mark.parametrize("tracks", ["yes", "never"])
def test_one_node_is_refused_before_anything_is_computed(policy, tracks):
    """nn.BatchNorm1d refuses it as well, after the convolution."""
    one = synthetic_graph(NODES, 150, FEATURES, CLASSES, seed=2).features[:1]
    model = set_norm(network(policy), True, 0.1, tracks, "both")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    seeds = torch.zeros(model.num_seeds, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"more than 1 node .* got 1; pass more nodes"):
        model(one, None, seeds)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("policy", POLICIES)
def test_one_node_is_normalised_by_running_statistics(policy):
    from pipeline_src.graphs.graph import adjacency_from_edges

    alone = mean_aggregation(
        adjacency_from_edges(*torch.zeros(2, 1, dtype=torch.int64).numpy(), 1)
    )
    state = {"training": False, "momentum": 0.1, "tracks": "yes", "affine": "both"}
    model, plain = (set_norm(network(name), **state) for name in (policy, "full"))
    seeds = torch.zeros(model.num_seeds, dtype=torch.int32)
    found = model(GRAPH.features[:1], alone, seeds)
    expected = plain(GRAPH.features[:1], alone)
    assert torch.allclose(found, expected, rtol=1e-5, atol=2.0**-20)


def test_running_statistics_move_together_but_shared_ones_in_turn(monkeypatch):
    """A GPU may do what is asked for in one call in any order."""
    norms = [nn.BatchNorm1d(HIDDEN, momentum=m) for m in (0.1, 0.1, 0.3)]
    norms.append(norms[0])
    plain = copy.deepcopy(norms)  # which keeps what is shared
    torch.manual_seed(1)
    batches = [torch.randn(NODES, HIDDEN) for _ in norms]
    calls = []
    lerp = torch._foreach_lerp_

    def recorded(running, batch, momentum):
        calls.append([id(one) for one in running])
        lerp(running, batch, momentum)

    monkeypatch.setattr(torch, "_foreach_lerp_", recorded)
    found = [
        BatchNorm.of(norm).statistics(x) for norm, x in zip(norms, batches, strict=True)
    ]
    move_running(found, NODES)
    assert [len(call) for call in calls] == [4, 2, 2]
    assert all(len(set(call)) == len(call) for call in calls)
    for other, x in zip(plain, batches, strict=True):
        other(x)
    for norm, other in zip(norms, plain, strict=True):
        for one, expected in zip(norm.buffers(), other.buffers(), strict=True):
            # Means of NODES values below 4 in magnitude, their squares below 16.
            assert torch.allclose(one, expected, rtol=0, atol=16 * NODES * 2.0**-24)
