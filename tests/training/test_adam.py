import pytest
import torch

from pipeline_src.training.adam import Adam


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator))
        for shape in ((5, 3), (7,))
    ]


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_every_bit_is_that_of_the_class_of_pytorch(weight_decay):
    ours, theirs = parameters(), parameters()
    optimizer = Adam(ours, 0.1, weight_decay)
    reference = torch.optim.Adam(theirs, lr=0.1, weight_decay=weight_decay)
    for _ in range(5):
        for one, found in ((optimizer, ours), (reference, theirs)):
            one.zero_grad()
            sum(parameter.square().sin().sum() for parameter in found).backward()
            one.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)
    kept = [t for state in reference.state.values() for t in state.values()]
    assert sorted(t.nbytes for t in optimizer.state()) == sorted(t.nbytes for t in kept)


def test_a_parameter_that_was_forgotten_is_noticed():
    used, unused = parameters()
    optimizer = Adam([used, unused], 0.1, 0.0)
    used.sum().backward()
    with pytest.raises(AssertionError, match="all take part"):
        optimizer.step()
