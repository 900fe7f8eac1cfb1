"""Codes with noise that the reader knows, against their law over all of the noise.

The noise takes 2**16 values, so means over it are sums and not samples.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline_src.quant.shared_noise import (
    LARGEST_ESTIMATE,
    estimate_share,
    estimate_variance,
    round_to_level,
)

STEPS = [1, 7, 127]
NOISE = (torch.arange(2**16) + 0.5) * 2.0**-16
SHARES = torch.linspace(0, 1, 201)


def coded(shares, steps, reach=1.0):
    """Levels and estimates, (shares, noise)."""
    reach = torch.tensor(reach)
    level = round_to_level(shares[:, None] * reach, reach, NOISE[None], steps)
    return level, estimate_share(level, NOISE[None], steps).double()


def resolution(steps):
    """How far the mean may be off: half an interval of the noise, met late or early.

    With one threshold it weighs at most its largest derivative, 4.2, and ties within
    an ulp add a hundredth. With several, a bin is at most 1.5 / steps wide, and
    position * steps + noise is rounded by at most (steps + 1) * 2**-22 of a bin, four
    operations of half an ulp.
    """
    if steps == 1:
        return 4.2 * 1.01 * 2.0**-17 + 2.0**-22
    return (2.0**-17 + (steps + 1) * 2.0**-22) * 1.5 / steps


@pytest.mark.parametrize("steps", STEPS)
def test_every_value_is_estimated_without_bias(steps):
    level, estimates = coded(SHARES, steps)
    assert level.min() == 0
    assert level.max() == steps
    error = (estimates.mean(dim=1) - SHARES).abs()
    assert torch.all(error <= resolution(steps))


@given(share=st.floats(0, 1), reach=st.floats(2.0**-100, 2.0**100))
@pytest.mark.parametrize("steps", STEPS)
def test_any_value_is_estimated_without_bias(share, reach, steps):
    # The reach is a float32, and the product with it rounds once.
    reach = float(torch.tensor(reach))
    _, estimates = coded(torch.tensor([share]), steps, reach)
    assert abs(float(estimates.mean()) - share) <= resolution(steps) + 2.0**-23


@pytest.mark.parametrize("steps", STEPS)
def test_a_side_without_width_has_one_level(steps):
    zero = torch.zeros(1)
    assert torch.all(round_to_level(zero, zero, NOISE, steps) == 0)


def variance_by_definition(steps):
    """Of each share, from the formulas of the essay, in float64."""
    x = SHARES.double().numpy()[:, None]
    if steps > 1:
        s = np.sqrt(0.25 + 2 * x[:, 0]) - 0.5
        return (0.5 + s) ** 2 / (12 * steps**2) + 1 / (720 * steps**4)
    u = NOISE.double().numpy()[None]
    rises = 0.6 + 0.4 * 9 * u**8
    mean = 0.6 / 3 + 0.4 * 2 / (10 * 11)
    code = x > 0.6 * u + 0.4 * u**9
    return ((mean + rises * (code - (1 - u) ** 2)) ** 2).mean(axis=1) - x[:, 0] ** 2


@pytest.mark.parametrize("steps", STEPS)
def test_variance_is_that_of_the_essay(steps):
    _, estimates = coded(SHARES, steps)
    found = (estimates - SHARES.double()[:, None]).square().mean(dim=1).numpy()
    # A tie met otherwise moves one of 2**16 terms, which are at most 4.5**2; with
    # several thresholds, at most a bin squared.
    allowed = 2 * 2.0**-16 * (20 if steps == 1 else (1.5 / steps) ** 2)
    assert np.all(np.abs(found - variance_by_definition(steps)) <= allowed)


@pytest.mark.parametrize("steps", STEPS)
def test_variance_is_estimated_without_bias(steps):
    level, estimates = coded(SHARES, steps)
    variance = (estimates - SHARES.double()[:, None]).square().mean(dim=1)
    found = estimate_variance(level, NOISE[None], steps).double().mean(dim=1)
    allowed = 3 * resolution(steps) * (4.5 if steps == 1 else 2 / steps)
    assert torch.all((found - variance).abs() <= allowed)


@pytest.mark.parametrize(
    ("reach", "best", "ours", "rounding_to_ends"),
    [(3.0, 0.40, 0.45, 1.40), (4.0, 0.46, 0.53, 2.19)],
)
def test_the_figures_of_the_essay(reach, best, ours, rounding_to_ends):
    """Half a normal law, its end at so many standard deviations; two digits."""
    x = SHARES.double().numpy()
    density = np.exp(-((reach * x) ** 2) / 2)
    density /= np.trapezoid(density, x)

    def mean(values):
        return float(np.trapezoid(density * values, x)) * reach**2

    assert mean(variance_by_definition(1)) == pytest.approx(ours, abs=0.006)
    assert mean(x * (1 - x)) == pytest.approx(rounding_to_ends, abs=0.006)
    below = np.array([math.erf(reach * one / 2**0.5) for one in x])
    below /= below[-1]
    square = np.trapezoid(np.sqrt(below * (1 - below)), x) ** 2 * reach**2
    variance = mean(x**2) - (mean(x) / reach) ** 2
    assert square - variance == pytest.approx(best, abs=0.006)


def test_bins_that_widen_have_less_variance_than_even_ones():
    """0.71 of it for half a normal law that ends at 3.5 standard deviations."""
    x = SHARES.double().numpy()
    density = np.exp(-((3.5 * x) ** 2) / 2)
    mean = np.trapezoid(density * variance_by_definition(7), x)
    ratio = mean / np.trapezoid(density, x) * 12 * 7**2
    assert ratio == pytest.approx(0.71, abs=0.006)


@pytest.mark.parametrize("steps", STEPS)
def test_no_estimate_is_beyond_the_largest(steps):
    _, estimates = coded(SHARES, steps)
    assert estimates.abs().max() <= LARGEST_ESTIMATE
