"""How near codes must come, told by what backward does with what was kept."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_src.compression import keeper as keeper_module
from pipeline_src.compression.attachment import compress
from pipeline_src.compression.config import CompressionConfig

ROWS, WIDTH = 256, 32
X = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
DEGREES = torch.arange(1.0, ROWS + 1)[:, None]


class Apply(nn.Module):
    """A function of a linear layer's output."""

    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


@pytest.fixture
def widths(monkeypatch):
    """(shape, bits) of all that becomes codes."""
    found, of = [], keeper_module.Coded.of

    def spy(tensor, codes, seed):
        found.append((tuple(tensor.shape), codes.bits))
        return of(tensor, codes, seed)

    monkeypatch.setattr(keeper_module.Coded, "of", spy)
    return found


def gradients(function, config):
    torch.manual_seed(0)
    model = Apply(function)
    other = compress(copy.deepcopy(model), config)
    for one in (model, other):
        one(X).square().sum().backward()  # the square is outside: exact
    return model.layer.weight.grad, other.layer.weight.grad


TWO_BITS = CompressionConfig(bits=2, min_numel=1)


def amplified(y):
    """By a number for each node, made in forward of data alone, as PNA's scalers."""
    return y * (DEGREES + 1).log()


def variance(y):
    mean = y.mean(dim=0)
    return (y * y).mean(dim=0) - mean * mean


@pytest.mark.parametrize("function", [variance, lambda y: y.square().mean(dim=0)])
def test_squares_are_exact(function, widths):
    """They become variances; noise would drown a small difference of large numbers."""
    mine, theirs = gradients(lambda y: function(y + 100), TWO_BITS)
    assert torch.equal(mine, theirs)
    assert widths == []


def test_a_factor_far_smaller_than_what_it_multiplies_has_eight_bits(widths):
    """Its noise goes into every gradient before it, times the gradient behind it."""
    mine, theirs = gradients(amplified, TWO_BITS)
    assert widths == [((ROWS, 1), 8)]
    factor = (DEGREES + 1).log()
    torch.manual_seed(0)
    behind = 2 * Apply(amplified)(X).detach()  # of the loss, by the output
    bin_width = (factor.max() - factor.min()) / 255
    bound = bin_width * behind.abs().T @ X.abs()
    assert bool(((mine - theirs).abs() <= bound + 1e-3 * bound.mean()).all())
    assert not torch.equal(mine, theirs)


def test_products_of_two_activations_have_four_bits(widths):
    gradients(lambda y: functional.hardswish(y) * (y + 1), TWO_BITS)
    # What hardswish reads is smooth; each factor has noise of its own.
    assert sorted(bits for _, bits in widths) == [4, 4, 8]


@pytest.mark.parametrize("bits", [4, 8])
def test_more_bits_for_all_are_never_fewer(bits, widths):
    gradients(
        lambda y: functional.hardswish(y) * (y + 1),
        CompressionConfig(bits=bits, min_numel=1),
    )
    assert sorted(found for _, found in widths) == [bits, bits, 8]


def test_as_many_bits_as_are_asked_for(widths):
    config = CompressionConfig(2, nonlinear_bits=4, product_bits=2, min_numel=1)
    gradients(lambda y: functional.hardswish(y) * (y + 1), config)
    assert sorted(bits for _, bits in widths) == [2, 2, 4]


def test_what_a_product_is_added_to_is_no_factor(widths):
    """As in GCNII, which adds a share of an activation times a weight to it."""
    weight = nn.Parameter(torch.eye(WIDTH))
    gradients(lambda y: torch.addmm(y, y, weight, beta=0.5, alpha=0.5), TWO_BITS)
    # The weight is no part of the model, and a small factor.
    assert [bits for shape, bits in widths if shape == (ROWS, WIDTH)] == [2]
