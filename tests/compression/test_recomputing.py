"""Modules that keep their inputs alone."""

import copy
import pickle

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn
from torch.nn import functional

from pipeline_src.compression.attachment import compress, decompress
from pipeline_src.compression.config import Codes, CompressionConfig, Part, Recompute
from pipeline_src.training.meters import allocated_bytes, measure_memory
from tests.compression.zoo import MODELS, edges, features, labels

WHOLE = CompressionConfig(choices=((Part(), Recompute()),))
CONVOLUTIONS = CompressionConfig(
    bits=2, min_numel=1, choices=((Part(type=pyg.MessagePassing), Recompute()),)
)


def made(name):
    torch.manual_seed(4)
    return MODELS[name]().train()


def step(model, seed=3):
    torch.manual_seed(seed)
    model.zero_grad()
    output = model(features(), edges())
    functional.cross_entropy(output, labels()).backward()
    return output.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert torch.equal(found[name], one), name


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computed_again_is_pytorch_to_the_bit(name):
    """Gradients, Dropout and all, and statistics, which count a batch once."""
    model = made(name)
    other = compress(copy.deepcopy(model), WHOLE)
    output, expected = step(model)
    again, found = step(other)
    assert torch.equal(output, again)
    assert_equal(found, expected)
    assert_equal(dict(other.named_buffers()), dict(model.named_buffers()))


@pytest.mark.parametrize("name", ["pna", "gat", "deep gcn", "edge conv"])
def test_convolutions_are_exact_inside_and_the_rest_is_coded(name):
    """Where a convolution is the last layer, nothing before it adds noise to it."""
    model = made(name)
    other = compress(copy.deepcopy(model), CONVOLUTIONS)
    output, expected = step(model)
    again, found = step(other)
    assert torch.equal(output, again)
    last = {key for key in expected if key.startswith(("last.", "convs.1."))}
    assert_equal(
        {key: found[key] for key in last}, {key: expected[key] for key in last}
    )
    if name in ("pna", "edge conv"):
        assert any(not torch.equal(found[key], expected[key]) for key in expected)


class Inside(nn.Module):
    """Wide between a narrow input and a narrow output."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Sequential(
            nn.Linear(8, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 8)
        )
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.wide(x).tanh())


INSIDE = CompressionConfig(choices=((Part(name="wide"), Recompute()),))
ROWS = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))


def inside(config=INSIDE):
    torch.manual_seed(0)
    return compress(Inside(), config)


@pytest.mark.parametrize("rows", [512, 4_096])
def test_nothing_of_the_inside_is_kept(rows):
    """Its input is there anyway; it keeps the state of random numbers.

    Of the eight features behind it: tanh's derivative in 4 bits, the last layer's input
    in 2, each with a zero point and a scale in bfloat16 for 256 values, and the
    seed it was rounded with; each is an allocation of its own.
    """

    def held(config):
        model, x = inside(config), ROWS.repeat(rows // len(ROWS), 1)
        output, found = measure_memory(lambda: model(x), torch.device("cpu"))
        return found.held - allocated_bytes(output.nbytes)

    values = rows * ROWS.shape[1]
    codes = [values * 4 // 8, values * 2 // 8]
    blocks = [2 * values // 256] * 4
    parts = [torch.get_rng_state().nbytes, *codes, *blocks, 4, 4]
    assert held(INSIDE) == sum(map(allocated_bytes, parts))
    assert held(CompressionConfig()) > rows * 256 / 4  # two bits of the wide ones


def test_a_parameter_that_changed_since_forward_is_refused():
    model = inside()
    loss = model(ROWS).sum()
    with torch.no_grad():
        model.wide[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"parameter 0\.weight of wide, shaped"):
        loss.backward()


def test_an_input_that_changed_since_forward_is_refused():
    model = inside()
    x = ROWS.clone()
    loss = model(x).sum()
    x.zero_()
    with pytest.raises(RuntimeError, match="input of wide, shaped"):
        loss.backward()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return x * self.calls


def test_a_module_that_changes_what_it_reads_is_refused():
    model = nn.Sequential(nn.Linear(8, 8), Counting())
    compress(model, CompressionConfig(choices=((Part(name="1"), Recompute()),)))
    with pytest.raises(
        RuntimeError, match=r"1 cannot be computed again: .*buffer calls"
    ):
        model(ROWS)
    # And nothing of that pass is left behind.
    decompress(model)
    model(ROWS).sum().backward()


def test_an_error_inside_leaves_nothing_behind():
    model = inside()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(ROWS[:, :5])
    expected = decompress(inside())
    decompress(model)
    for one in (model, expected):
        one(ROWS).sum().backward()
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_a_second_backward_computes_again():
    model = inside()
    loss = model(ROWS).square().sum()
    loss.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in model.named_parameters()}
    loss.backward()
    for name, one in model.named_parameters():
        assert torch.equal(one.grad, 2 * once[name]), name


def test_copies_and_pickles_compute_again_too():
    model = inside()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        output = other(ROWS)
        with torch.no_grad():
            other.wide[0].weight.mul_(2)
        with pytest.raises(RuntimeError, match=r"parameter 0\.weight of wide"):
            output.sum().backward()
        decompress(other)
        assert not any(one._forward_hooks for one in other.modules())
        assert not any(one._forward_pre_hooks for one in other.modules())


def test_the_outermost_module_alone_and_the_last_match():
    model = inside(WHOLE)
    assert model._forward_pre_hooks
    assert not any(one._forward_pre_hooks for one in model.wide.modules())
    parts = ((Part(name="wide*"), Recompute()), (Part(name="wide.*"), Codes(4)))
    assert inside(CompressionConfig(choices=parts)).wide._forward_pre_hooks
    overruled = ((Part(name="wide"), Recompute()), (Part(name="wide"), Codes(4)))
    assert not inside(CompressionConfig(choices=overruled)).wide._forward_pre_hooks


def test_single_operations_are_not_computed_again():
    with pytest.raises(ValueError, match=r"whole modules, .* operation 'relu'"):
        CompressionConfig(choices=((Part(operation="relu"), Recompute()),))


def test_nothing_runs_again_where_nothing_is_kept():
    model = inside().eval()
    calls = []
    model.wide.register_forward_hook(lambda *_: calls.append(1))
    model(ROWS)
    with torch.no_grad():
        model.train()(ROWS)
    assert len(calls) == 2
