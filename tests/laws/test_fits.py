"""Laws: masses that add up, quantiles that invert, fits that find the truth."""

import numpy as np
import pytest
import scipy.stats
from made_up_positions import NARROW, NUM_BINS, RARE, SKEWED, count, draw, draw_blocks

from pipeline_src.laws import cells
from pipeline_src.laws import fits as laws


@pytest.mark.parametrize("law", laws.LAWS)
def test_quantiles_invert_the_cumulative_distribution(law, rng):
    fit = laws.fit_laws(count(draw_blocks("truncated_normal", 50, 16, rng)))[law]
    edges = np.linspace(0, NUM_BINS, cells.NUM_CELLS + 1)
    share = np.linspace(fit.cumulative[0], fit.cumulative[-1], 50)[1:-1]
    back = np.interp(fit.quantile(share), edges, fit.cumulative)
    assert np.abs(back - share).max() <= np.diff(fit.cumulative).max()


@pytest.mark.parametrize("law", laws.LAWS)
def test_the_masses_of_a_law_add_up_to_one(law, rng):
    fit = laws.fit_laws(count(draw_blocks("truncated_normal", 50, 16, rng)))[law]
    inside = np.diff(fit.cumulative).sum()
    total = fit.below + fit.at_minimum + inside + fit.at_maximum + fit.above
    assert total == pytest.approx(1, abs=1e-14)
    assert fit.cumulative[0] == pytest.approx(fit.below + fit.at_minimum, abs=1e-15)


def test_fits_find_the_parameters_within_their_standard_errors(rng):
    n = 50_000
    normal = laws.fit_laws(count(rng.normal(*NARROW, n)))["normal"]
    assert abs(normal.mean - NARROW[0]) < 5 * NARROW[1] / n**0.5
    assert abs(normal.std - NARROW[1]) < 5 * NARROW[1] / (2 * n) ** 0.5
    fits = [
        laws.fit_laws(count(draw("truncated_normal", n, rng, 16)))["truncated_normal"]
        for _ in range(10)
    ]
    for found, truth in zip(
        np.transpose([(fit.mean, fit.std) for fit in fits]), SKEWED, strict=True
    ):
        standard_error = found.std(ddof=1) / len(found) ** 0.5
        assert abs(found.mean() - truth) < scipy.stats.t.isf(RARE, 9) * standard_error
        assert found.std() < 0.1 * truth


def test_truncated_normal_of_values_heaped_at_both_ends_is_an_exponential(rng):
    fit = laws.fit_laws(count(NUM_BINS * rng.beta(0.5, 0.6, 4_096)))["truncated_normal"]
    assert fit.std == np.inf
    assert np.isnan(fit.mean)
    rate = np.diff(np.log(np.diff(fit.cumulative)))
    assert np.ptp(rate) < 1e-9
