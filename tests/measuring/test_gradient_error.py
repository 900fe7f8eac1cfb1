"""The gradient's error as bias and variance, against errors of known law."""

import math

import pytest
import torch

from pipeline_src.measuring.gradient_error import split_error


def test_by_hand():
    """Errors (1, 0), (0, 1) and (1, 1) over gradients of norm 5: products 0, 1, 1."""
    truths = torch.tensor([[3.0, 4.0], [5.0, 0.0], [0.0, 5.0]])
    errors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = split_error(truths + errors, truths)
    assert found.total == pytest.approx((1 + 1 + 2) / 3 / 25)
    assert found.bias == pytest.approx((0 + 1 + 1) / 3 / 25)
    assert found.variance == pytest.approx((4 - 2) / 3 / 25)
    # Without a draw the one pair left has 1, 1 or 0: mean 2/3, squares sum to 2/3.
    assert found.bias_standard_error == pytest.approx(math.sqrt(2 / 3 * 2 / 3) / 25)


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_bias_is_found_within_its_standard_error(bias):
    """Of 400 sets of 12 draws, by the mean of the sets and their own spread."""
    generator = torch.Generator().manual_seed(0)
    truths = torch.ones(12, 50) / 50**0.5
    sets = []
    for _ in range(400):
        noise = torch.randn(12, 50, generator=generator) / 50**0.5
        errors = noise + torch.eye(50)[0] * bias
        sets.append(split_error(truths + errors, truths))
    biases = torch.tensor([one.bias for one in sets])
    standard_error = float(biases.std()) / 20
    assert abs(float(biases.mean()) - bias**2) <= 5 * standard_error
    # The naive square of the mean would be off by 1 / 12.
    assert 5 * standard_error < 1 / 12
    claimed = sum(one.bias_standard_error**2 for one in sets) / 400
    # Without bias the jackknife's variance is too large by 2 (n - 1) / (n - 2) = 2.2;
    # the spread of 400 sets is known to a tenth and a half.
    ratio = math.sqrt(claimed) / float(biases.std())
    assert 1 / 1.15 <= ratio <= math.sqrt(2.2) * 1.15
    assert sets[0].variance == pytest.approx(sets[0].total - sets[0].bias)


def test_what_too_few_draws_cannot_tell_is_not_a_number():
    one = torch.ones(3, 4)
    assert math.isnan(split_error(one[:1] * 2, one[:1]).bias)
    assert split_error(one[:2] * 2, one[:2]).bias == pytest.approx(1.0)
    assert math.isnan(split_error(one[:2] * 2, one[:2]).bias_standard_error)
