"""PReLU under compress: exact signs, slopes that are right in the mean."""

import copy

import pytest
import torch
from torch import nn

from pipeline_src.compression.attachment import attachment_of, compress
from pipeline_src.compression.config import CompressionConfig, Keep, Offload, Part
from pipeline_src.training.meters import measure_memory

ROWS, WIDTH = 96, 12
EPS = torch.finfo(torch.float32).eps


class Sloped(nn.Module):
    """PReLU of an activation, whose values are asked for in shapes and strides."""

    def __init__(self, slopes=1, shape=(ROWS, WIDTH), transposed=False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        sizes = shape[::-1] if transposed else shape
        values = torch.randn(sizes, generator=generator)
        values.view(-1)[::7] = 0.0  # where PyTorch takes the slope
        self.x = nn.Parameter(values)
        self.act = nn.PReLU(slopes, init=0.3)
        self.transposed = transposed

    def forward(self, one):
        x = self.x * one  # an activation: a parameter would be resident
        return self.act(x.T if self.transposed else x)


def step(module, dtype=torch.float32):
    """Output and gradients by parameter, for one fixed gradient of the output."""
    module.zero_grad()
    output = module(torch.ones((), dtype=dtype))
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(weights.to(dtype))
    return output.detach(), {name: p.grad for name, p in module.named_parameters()}


def compressed(module, bits, **arguments):
    config = CompressionConfig(bits=bits, min_numel=1, **arguments)
    return compress(copy.deepcopy(module), config)


MODULES = {
    "one slope": lambda: Sloped(),
    "a slope per channel": lambda: Sloped(WIDTH),
    "a slope per channel of images": lambda: Sloped(4, (ROWS, 4, 3)),
    "strides of a transpose": lambda: Sloped(WIDTH, transposed=True),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("bits", [2, 32])
def test_values_are_equal_and_the_gradient_of_the_input_is_exact(name, bits):
    """Both to the bit, at any number of bits; the slope's but for the order of sums."""
    module = MODULES[name]()
    (output, truth), (found, gradients) = step(module), step(compressed(module, bits))
    assert torch.equal(found, output)
    assert found.stride() == output.stride()
    assert torch.equal(gradients["x"], truth["x"])
    if bits == 32:
        # N additions in any order are off by N eps times the sum of sizes, at most; the
        # sizes of terms are below 4 * 4 here.
        bound = module.x.numel() ** 2 * 16 * EPS
        error = (gradients["act.weight"] - truth["act.weight"]).abs().max()
        assert error <= min(bound, 1e-3)


@pytest.mark.parametrize("slopes", [1, WIDTH])
def test_slopes_are_right_in_the_mean(slopes):
    draws = 300
    module = Sloped(slopes)
    truth = step(module)[1]["act.weight"].double()
    other = compressed(module, 2)
    found = [step(other)[1]["act.weight"].clone() for _ in range(draws)]
    every = torch.stack(found).double()
    spread = every.std(dim=0)
    assert (spread > 0).all(), "nothing was rounded"
    # Standard errors: 5 of a normal one come once in a million.
    assert ((every.mean(dim=0) - truth).abs() <= 5 * spread / draws**0.5).all()


def held(module):
    def forward():
        return module(torch.ones(()))

    forward()
    return measure_memory(forward, torch.device("cpu"))[1].held


@pytest.mark.parametrize("is_trained", [True, False])
def test_bits_are_kept_and_codes_where_the_slope_is_trained(is_trained):
    module = Sloped(shape=(4_096, WIDTH))
    module.act.requires_grad_(is_trained)
    values = module.x.numel()
    # Beside: the product in front, whose own parts are the parameter and a scalar, and
    # a few bytes; codes have two floats for each 256 values.
    expected = values / 8 + is_trained * values * (2 / 8 + 8 / 256)
    assert expected <= held(compressed(module, 2)) <= expected + 256
    assert held(module) >= 4 * values


@pytest.mark.parametrize("choice", [Keep(), Offload()])
def test_other_choices_leave_it_to_pytorch(choice):
    module = Sloped(WIDTH)
    other = compressed(module, 2, choices=((Part(type=nn.PReLU), choice),))
    (_, truth), (_, found) = step(module), step(other)
    assert all(torch.equal(found[name], truth[name]) for name in truth)


def test_under_autocast_it_is_kept_whole_and_said_so():
    module = Sloped()
    other = compressed(module, 2)
    found = []
    for one in (module, other):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(one(torch.ones(())))
    assert torch.equal(*found)
    assert "prelu" in {note.operation for note in attachment_of(other).notes}


class SlopeOfItsInput(nn.Module):
    """The slope is the mean of what it is applied to, through a weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.slope = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 1, bias=False)

    def forward(self, x):
        hidden = self.first(x)
        return torch.prelu(hidden, self.slope(hidden).mean(dim=0))


def test_a_slope_with_a_past_has_noise_of_its_own():
    """Its weight's gradient multiplies hidden values twice."""
    draws = 300
    module = SlopeOfItsInput()
    x = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(3))

    def gradient():
        module.zero_grad()
        module(x).square().sum().backward()
        return module.slope.weight.grad.flatten().clone()

    truth = gradient()
    config = CompressionConfig(bits=2, min_numel=1)
    # The loss is not our question: its square keeps what it is applied to.
    compress(module, config)
    found = torch.stack([gradient() for _ in range(draws)])
    error = (found.mean(dim=0) - truth) / (found.std(dim=0) / draws**0.5)
    # WIDTH standard errors that share noise: each is normal, 5 come once in a million.
    assert (error.abs() <= 5).all()
