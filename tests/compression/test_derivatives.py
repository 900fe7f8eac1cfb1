"""Single operations under compress: as PyTorch has them, and right in the mean."""

import copy

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn
from torch.nn import functional

from pipeline_src.compression import float8, sources
from pipeline_src.compression.attachment import attachment_of, compress
from pipeline_src.compression.config import CompressionConfig, Keep, Part
from pipeline_src.compression.rules import normalizing
from pipeline_src.training.meters import measure_memory

ROWS, WIDTH = 144, 16
GRAPHS = torch.arange(ROWS) // 50  # three graphs of nodes


class Applied(nn.Module):
    """A function, or a module, of an activation."""

    def __init__(self, function, shape=(ROWS, WIDTH), lowest=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(shape, generator=generator)
        if lowest is not None:
            values = lowest + values.abs()
        self.x, self.function = nn.Parameter(values), function

    def forward(self, one):
        return self.function(self.x * one)


def step(module):
    """Output and gradients, of a loss that weighs each value."""
    module.zero_grad()
    output = module(torch.ones(()))
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(1 + weights)
    found = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return output.detach(), torch.cat(found)


def compressed(module, bits, **arguments):
    config = CompressionConfig(bits=bits, min_numel=1, **arguments)
    return compress(copy.deepcopy(module), config)


def attention(x):
    query, key, value = x.view(3, 4, ROWS // 12, WIDTH)
    return functional.scaled_dot_product_attention(query, key, value)


def masked_attention(x):
    query, key, value = x.view(3, 4, ROWS // 12, WIDTH)
    mask = torch.ones(ROWS // 12, ROWS // 12, dtype=torch.bool).tril()
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def with_graphs(norm):
    torch.manual_seed(0)
    return lambda x: norm(x, GRAPHS)


# Bits of a value that are kept for it.
POINTWISE = {
    "exp": (torch.exp, None, 8),
    "log": (torch.log, 0.01, 8),
    "log1p": (torch.log1p, 0.0, 8),
    "sqrt": (torch.sqrt, 0.01, 8),
    "rsqrt": (torch.rsqrt, 0.1, 8),
    "reciprocal": (lambda x: 1.0 / x, 0.1, 8),
    "power": (lambda x: x**-1.5, 0.1, 8),
    "cube": (lambda x: x.pow(3), None, 8),
    "sigmoid": (torch.sigmoid, None, 4),
    "tanh": (torch.tanh, None, 4),
    "gelu": (functional.gelu, None, 4),
    "gelu, tanh": (lambda x: functional.gelu(x, approximate="tanh"), None, 4),
    "silu": (functional.silu, None, 4),
    "elu": (functional.elu, None, 4),
    "softplus": (functional.softplus, None, 4),
    "deviation of rows": (lambda x: x.std(dim=-1), None, 4),
    "deviation": (lambda x: x.std(unbiased=False), None, 4),
    "variance of columns": (lambda x: torch.var(x, 0, keepdim=True), None, 4),
    "length": (lambda x: x.norm(2, -1, keepdim=True), None, 4),
    "logsumexp": (lambda x: torch.logsumexp(x, 1), None, 4),
    "log_softmax": (lambda x: functional.log_softmax(x, dim=-1), None, 8),
    "softmax": (lambda x: x.softmax(dim=1), None, 12),
}
OTHERS = {
    "quotient": (lambda x: x / (2 + x.sin()), None),
    "quotient by rows": (lambda x: x / (0.1 + x.norm(2, -1, keepdim=True)), None),
    "quotient by one": (lambda x: x / (0.1 + x.std()), None),
    "attention": (attention, None),
    "masked attention": (masked_attention, None),
    "layer norm": (nn.LayerNorm(WIDTH), None),
    "layer norm, no weights": (nn.LayerNorm(WIDTH, elementwise_affine=False), None),
    "graph norm": (pyg.GraphNorm(WIDTH), None),
    "pair norm": (pyg.PairNorm(), None),
    "pair norm, rows": (pyg.PairNorm(scale_individually=True), None),
    "instance norm": (pyg.InstanceNorm(WIDTH, affine=True), None),
    "layer norm of graphs": (pyg.LayerNorm(WIDTH), None),
    "graph norm, batch": (with_graphs(pyg.GraphNorm(WIDTH)), None),
    "pair norm, batch": (with_graphs(pyg.PairNorm()), None),
    "instance norm, batch": (with_graphs(pyg.InstanceNorm(WIDTH)), None),
    "layer norm of graphs, batch": (with_graphs(pyg.LayerNorm(WIDTH)), None),
}
ALL = {**{name: one[:2] for name, one in POINTWISE.items()}, **OTHERS}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bits", [2, 32])
def test_forward_is_equal_and_so_are_gradients_of_exact_codes(name, bits, monkeypatch):
    monkeypatch.setattr(sources, "RUN_VALUES", 64 * WIDTH)  # rows come in three runs
    module = Applied(ALL[name][0], lowest=ALL[name][1])
    (output, truth), (found, gradient) = step(module), step(compressed(module, bits))
    assert torch.equal(found, output)
    assert found.stride() == output.stride()
    if bits == 32:
        assert torch.equal(gradient, truth)


def bias(module, draws=200, **arguments):
    """Squared error of the mean over what noise explains, and its bound.

    The error of the mean of fair draws has a squared norm of total variance / draws in
    the mean. It is a sum of squares of nearly normal numbers with the variances v: its
    spread is sqrt(2 sum v**2) over sum v, of which 5 come once in a million.
    """
    truth = step(module)[1].double()
    other = compressed(module, 2, **arguments)
    every = torch.stack([step(other)[1] for _ in range(draws)]).double()
    left_alone = [note for note in attachment_of(other).notes if note.nbytes >= ROWS]
    assert left_alone == [], "nothing that grows with nodes"
    variance = every.var(dim=0) / draws
    expected = variance.sum()
    assert expected > 0, "nothing was rounded"
    # What float32 rounds, in each of a few operations on the way.
    floor = (16 * torch.finfo(torch.float32).eps * truth).square().sum()
    error = (every.mean(dim=0) - truth).square().sum()
    bound = 1 + 5 * (2 * variance.square().sum()).sqrt() / expected
    return float((error - floor) / expected), float(bound)


@pytest.mark.parametrize("name", ALL)
def test_gradients_of_two_bits_are_right_in_the_mean(name, monkeypatch):
    monkeypatch.setattr(sources, "RUN_VALUES", 64 * WIDTH)
    ratio, bound = bias(Applied(ALL[name][0], lowest=ALL[name][1]))
    assert ratio <= bound


def test_one_noise_in_two_places_would_be_seen(monkeypatch):
    """A planted fault: softmax reads one source twice."""

    class Twice(normalizing._Softmax):
        @staticmethod
        def forward(ctx, x, output, share, averaged):
            ctx.share = ctx.averaged = averaged
            return output.tensor

    monkeypatch.setattr(normalizing, "_Softmax", Twice)
    ratio, bound = bias(Applied(POINTWISE["softmax"][0]), product_bits=2)
    assert ratio > bound


@pytest.mark.parametrize("name", ["sqrt", "quotient"])
def test_rounding_to_the_nearest_would_be_seen(name, monkeypatch):
    """A planted fault: floats of eight bits, rounded without noise in most places."""

    def nearly_nearest(keys, columns):
        pair = half(keys, columns)
        return tuple(0.45 + 0.1 * one for one in pair)

    half = float8.uniform_pair
    monkeypatch.setattr(float8, "uniform_pair", nearly_nearest)
    ratio, bound = bias(Applied(ALL[name][0], lowest=ALL[name][1]))
    assert ratio > bound


@pytest.mark.parametrize("name", POINTWISE)
def test_no_more_is_kept_than_bits_for_each_value(name):
    function, lowest, bits = POINTWISE[name]
    shape = (4_096, WIDTH)
    module = compressed(Applied(function, shape, lowest), 2)

    def forward():
        return module(torch.ones(()))

    forward()
    held = measure_memory(forward, torch.device("cpu"))[1].held
    values = module.x.numel()
    # The output is whole; a block of codes has two floats. A scalar or a seed is
    # rounded up by the meter.
    output = forward().nbytes
    blocks = values // 256
    assert held <= output + values * bits // 8 + 2 * 8 * blocks + 2_048


def test_the_divisor_of_a_row_is_kept_as_it_is():
    module = compressed(Applied(lambda x: x / x.square().sum(-1, keepdim=True)), 2)
    step(module)
    assert "div" not in {note.operation for note in attachment_of(module).notes}


def test_a_choice_to_keep_is_kept():
    choices = ((Part(operation="softmax"), Keep()), (Part(operation="sqrt"), Keep()))
    for name in ("softmax", "sqrt"):
        module = Applied(ALL[name][0], lowest=ALL[name][1])
        other = compressed(module, 2, choices=choices)
        assert torch.equal(step(module)[1], step(other)[1])


def test_in_place_functions_are_pytorchs():
    module = Applied(lambda x: functional.silu(x + 1, inplace=True))
    (output, _), (found, _) = step(module), step(compressed(module, 2))
    assert torch.equal(output, found)


def test_squares_outside_of_norms_stay_exact():
    """Deviations of few messages are made of them, and have poles."""
    for function in (lambda x: x * x, lambda x: x.square(), lambda x: x**2):
        module = Applied(function)
        assert torch.equal(step(module)[1], step(compressed(module, 2))[1])


def test_half_precision():
    module = Applied(lambda x: functional.gelu(x.bfloat16()).softmax(dim=-1))
    (output, truth), (found, gradient) = step(module), step(compressed(module, 32))
    assert torch.equal(output, found)
    assert torch.equal(truth, gradient)
    output, gradient = step(compressed(module, 2))
    assert torch.equal(output, found)
    assert gradient.isfinite().all()


def test_a_mask_that_changed_is_refused():
    mask = torch.ones(ROWS // 12, ROWS // 12)

    def masked(x):
        query, key, value = x.view(3, 4, ROWS // 12, WIDTH)
        return functional.scaled_dot_product_attention(query, key, value, mask)

    module = Applied(masked)
    output = compress(module, CompressionConfig(min_numel=1))(torch.ones(()))
    mask.add_(1)
    with pytest.raises(RuntimeError, match="a mask of attention"):
        output.sum().backward()
