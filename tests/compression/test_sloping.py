"""PReLU under compress: exact signs, slopes that are right in the mean."""

import copy

import pytest
import torch
from torch import nn

from pipeline_src.compression import sources
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


def weights_of(output):
    """The gradient of the output: of both signs, and not 0 in the mean."""
    return 1 + torch.randn(output.shape, generator=torch.Generator().manual_seed(1))


def step(module):
    """Output and gradients by parameter."""
    module.zero_grad()
    output = module(torch.ones(()))
    output.backward(weights_of(output))
    return output.detach(), {n: p.grad.clone() for n, p in module.named_parameters()}


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
def test_values_are_equal_and_the_gradient_of_the_input_is_exact(
    name, bits, monkeypatch
):
    """Both to the bit, at any number of bits; the slope's but for the order of sums."""
    monkeypatch.setattr(sources, "RUN_VALUES", 64 * WIDTH)  # rows come in two runs
    module = MODULES[name]()
    (output, truth), (found, gradients) = step(module), step(compressed(module, bits))
    assert torch.equal(found, output)
    assert found.stride() == output.stride()
    assert torch.equal(gradients["x"], truth["x"])
    if bits == 32:
        # N additions in any order are off by N eps times the sum of sizes, at most;
        # 0.3 of a negative value is what the output holds of it.
        sizes = (weights_of(output) * output / 0.3).abs().sum()
        error = (gradients["act.weight"] - truth["act.weight"]).abs().max()
        assert error <= output.numel() * EPS * sizes


@pytest.mark.parametrize("slopes", [1, WIDTH])
def test_slopes_are_right_in_the_mean(slopes):
    draws = 300
    module = Sloped(slopes)
    truth = step(module)[1]["act.weight"].double()
    other = compressed(module, 2)
    found = [step(other)[1]["act.weight"] for _ in range(draws)]
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
    # The graph holds its leaves, too: x and, rounded up by the meter, a slope or a
    # scalar. Codes have two floats for each 256 values.
    leaves = 4 * values + 512
    kept = values // 8 + is_trained * values * (2 * 4 + 64) // 256
    assert held(compressed(module, 2)) == leaves + kept
    assert held(module) == leaves + 4 * values


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
    """Slopes are weighed means of what they are applied to."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.share = nn.Linear(6, WIDTH), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        hidden = self.first(x)
        return torch.prelu(hidden, (hidden * self.share).mean(dim=0))


def test_a_slope_with_a_past_has_noise_of_its_own():
    """A share's gradient is the slope's, a sum of hidden values, times their mean.

    Few rows: a common noise adds its variance to the product once, and the noise of the
    product itself grows with the rows.
    """
    draws = 800
    module = SlopeOfItsInput()
    x = 2 * torch.randn(16, 6, generator=torch.Generator().manual_seed(3))

    def gradient():
        module.zero_grad()
        module(x).sum().backward()
        return module.share.grad.clone()

    truth = gradient()
    compress(module, CompressionConfig(bits=2, min_numel=1))
    found = torch.stack([gradient() for _ in range(draws)])
    error = (found.mean(dim=0) - truth) / (found.std(dim=0) / draws**0.5)
    # WIDTH standard errors; the mean square of normal ones spreads by sqrt(2 / WIDTH).
    assert float(error.square().mean()) < 1 + 5 * (2 / WIDTH) ** 0.5
