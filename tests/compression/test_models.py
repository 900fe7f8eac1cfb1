"""compress on networks that nobody here wrote: forward, gradients, and their mean."""

import copy

import pytest
import torch
from torch.nn import functional

from pipeline_src.compression.attachment import compress
from pipeline_src.compression.config import CompressionConfig
from pipeline_src.compression.edges import reducing
from pipeline_src.compression.edges import rows as edges_module
from tests.compression.zoo import (
    EDGES_ONLY,
    HIDDEN,
    MODELS,
    adjacency,
    edges,
    features,
    labels,
)

GRAPHS = {"edges": edges(), "ranges": edges(), "matrix": adjacency()}
CASES = [
    (name, graph)
    for name in MODELS
    for graph in GRAPHS
    if graph != "matrix" or name not in EDGES_ONLY
]


@pytest.fixture
def in_ranges(monkeypatch):
    """Edges are never whole, and messages come in many ranges; one node has more."""
    monkeypatch.setattr(edges_module, "MIN_EDGE_VALUES", 1)
    monkeypatch.setattr(reducing, "RANGE_VALUES", 40 * HIDDEN)


def made(name):
    torch.manual_seed(4)
    return MODELS[name]()


def step(model, graph, seed=3):
    """Logits and gradients by parameter, Dropout drawn from a seed."""
    torch.manual_seed(seed)
    model.zero_grad()
    output = model(features(), GRAPHS[graph])
    functional.cross_entropy(output, labels()).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return output.detach(), {name: grad.clone() for name, grad in found.items()}


def compressed(model, bits):
    return compress(copy.deepcopy(model), CompressionConfig(bits=bits, min_numel=1))


@pytest.mark.parametrize(("name", "graph"), CASES)
@pytest.mark.parametrize("bits", [2, 32])
def test_forward_is_equal_and_exact_codes_give_exact_gradients(
    name, graph, bits, request
):
    if graph == "ranges":
        request.getfixturevalue("in_ranges")
    model = made(name)
    other = compressed(model, bits)
    output, gradients = step(model, graph)
    found, others = step(other, graph)
    if (name, graph) == ("edge conv", "ranges"):
        # A product with a matrix may round a row by its place among the others.
        bound = 3 * HIDDEN * torch.finfo(torch.float32).eps * float(output.abs().max())
        assert (output - found).abs().max() <= bound
    else:
        assert torch.equal(output, found)
    for mine, theirs in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert others.keys() == gradients.keys()
    if bits == 2:
        return
    # Additions in another order. A gradient that is a sum of N terms of one size may be
    # 0 in truth, as a bias in front of BatchNorm: errors are counted by the largest.
    largest = max(float(one.abs().max()) for one in gradients.values())
    for name, gradient in gradients.items():
        difference = (others[name] - gradient).abs().max()
        assert difference <= largest * 120 * torch.finfo(torch.float32).eps, name


# Squared roundings of the additions themselves, of gradients that are below 1.
NEARLY_ZERO = 1e-10
UNBIASED = (
    "sage",
    "gcn",
    "gin",
    "gat",
    "gatv2",
    "gcn2",
    "deep gcn",
    "edge conv",
    "prelu",
)


@pytest.mark.parametrize("name", [*UNBIASED, "pna", "transformer, layer norm"])
@pytest.mark.parametrize("graph", ["edges", "ranges"])
def test_gradients_of_two_bits_are_right_in_the_mean(name, graph, request):
    """Mean over draws of rounding, in standard errors, over all parameters at once."""
    if graph == "ranges":
        request.getfixturevalue("in_ranges")
    draws = 60
    model = made(name)
    state = copy.deepcopy(model.state_dict())
    _, gradients = step(model, graph)
    truth = torch.cat([one.flatten() for one in gradients.values()])
    model.load_state_dict(state)
    other = compressed(model, 2)
    found = []
    for _ in range(draws):
        other.load_state_dict(state)
        found.append(torch.cat([g.flatten() for g in step(other, graph)[1].values()]))
    every = torch.stack(found).double()
    # The error of the mean of a fair estimate has a squared norm of total / draws, and
    # one that is biased by b has b**2 more. Estimated from the draws themselves.
    error = (every.mean(dim=0) - truth).square().sum()
    expected = every.var(dim=0).sum() / draws
    # The squared norm is a weighted sum of chi squares; with few weights that matter
    # its spread is at most sqrt(2) times its mean: 4 spreads are 6.7 means.
    assert float(error) <= 6.7 * float(expected) + NEARLY_ZERO
    if (name, graph) != ("edge conv", "ranges"):  # which keeps its nodes exactly
        assert float(expected) > 0, "nothing was rounded"
