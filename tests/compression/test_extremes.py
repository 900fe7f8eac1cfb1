"""Maxima of groups under compress: exact, from a bit for each value."""

import copy

import pytest
import torch
from torch import nn
from torch_geometric.utils import scatter

from pipeline_src.compression import sources
from pipeline_src.compression.attachment import attachment_of, compress
from pipeline_src.compression.config import CompressionConfig, Keep, Part
from pipeline_src.training.meters import measure_memory

ROWS, WIDTH, GROUPS = 200, 12, 30
INDEX = torch.randint(GROUPS - 4, (ROWS,), generator=torch.Generator().manual_seed(0))


class Extremes(nn.Module):
    """Of an activation with ties, and with extremes that are 0, as in empty groups."""

    def __init__(self, reduce, shape=(ROWS, WIDTH), index=INDEX):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.x = nn.Parameter(torch.randint(-9, 9, shape, generator=generator) / 4)
        with torch.no_grad():
            self.x[index < 3] = self.x[index < 3].clamp(max=0)
            self.x[index == 3] = self.x[index == 3].clamp(min=0)
        self.reduce, self.index = reduce, index

    def forward(self, one):
        return scatter(self.x * one, self.index, 0, GROUPS, reduce=self.reduce)


def step(module):
    module.zero_grad()
    output = module(torch.ones(()))
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    output.backward(weights)
    return output.detach(), module.x.grad.clone()


def compressed(module, **arguments):
    config = CompressionConfig(min_numel=1, **arguments)
    return compress(copy.deepcopy(module), config)


@pytest.mark.parametrize("reduce", ["max", "min"])
@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (ROWS, 3, 4), (ROWS, 1, WIDTH)])
def test_values_and_gradients_are_equal_to_the_bit(reduce, shape, monkeypatch):
    monkeypatch.setattr(sources, "RUN_VALUES", 64 * WIDTH)  # rows come in four runs
    module = Extremes(reduce, shape)
    other = compressed(module)
    (output, truth), (found, gradient) = step(module), step(other)
    assert torch.equal(output, found)
    assert torch.equal(truth, gradient)
    assert attachment_of(other).notes == []
    # The cases are there: a tie, and an extreme that PyTorch's zero takes part in.
    assert (output[:4] == 0).any()


def test_bits_are_kept():
    rows = 40_960
    index = torch.randint(GROUPS, (rows,), generator=torch.Generator().manual_seed(3))
    module = compressed(Extremes("max", (rows, WIDTH), index))

    def forward():
        return module(torch.ones(()))

    forward()
    held = measure_memory(forward, torch.device("cpu"))[1].held
    values = module.x.numel()
    # A bit for each row's value, and for each output; the output.
    few = GROUPS * WIDTH * 5 + 2_048
    assert values // 8 <= held <= values // 8 + few


def test_a_choice_to_keep_is_kept():
    module = Extremes("max")
    other = compressed(module, choices=((Part(), Keep()),))
    assert torch.equal(step(module)[1], step(other)[1])
    assert "scatter_reduce" in {note.operation for note in attachment_of(other).notes}


def test_an_index_that_changed_is_refused():
    module = Extremes("max", index=INDEX.clone())
    output = compress(module, CompressionConfig(min_numel=1))(torch.ones(()))
    module.index.add_(1)
    with pytest.raises(RuntimeError, match="an index of rows"):
        output.sum().backward()
