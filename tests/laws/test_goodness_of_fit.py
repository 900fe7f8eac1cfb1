"""Divergences against SciPy's, and p-values that are right as often as they say."""

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_up_positions import NUM_BINS, RARE, count, draw, draw_blocks

from pipeline_src.laws import cells, goodness_of_fit
from pipeline_src.laws import fits as laws
from pipeline_src.laws.clipped_normal import ClippedNormal

masses = hnp.arrays(int, 8, elements=st.integers(0, 10**6)).filter(np.any)


@given(p=masses, q=masses)
def test_divergence_is_scipy_s_symmetric_and_between_0_and_1(p, q):
    p, q = p / p.sum(), q / q.sum()
    divergence = goodness_of_fit.jensen_shannon_divergence(p, q)
    oracle = scipy.spatial.distance.jensenshannon(p, q, base=2)
    # SciPy's root loses half of the digits near 0; rounding may leave NaN there.
    assert divergence == pytest.approx(np.nan_to_num(oracle) ** 2, abs=1e-14)
    assert divergence == pytest.approx(
        goodness_of_fit.jensen_shannon_divergence(q, p), abs=1e-15
    )
    assert 0 <= divergence <= 1
    assert goodness_of_fit.jensen_shannon_divergence(p, p) == 0


@pytest.mark.parametrize("law", ["uniform", "truncated_normal"])
def test_distance_is_scipy_s_but_for_one_cell(law, rng):
    sample = draw(law, 4_096, rng, 16)
    observed = count(sample)
    for fit in laws.fit_laws(observed).values():
        edges = np.linspace(0, NUM_BINS, cells.NUM_CELLS + 1)

        def cumulative(x, fit=fit, edges=edges):
            inside = np.interp(x, edges, fit.cumulative)
            return np.where(x < NUM_BINS, inside, 1.0)

        exact = scipy.stats.kstest(sample, cumulative).statistic
        outside = max(fit.below, fit.above, fit.at_minimum, fit.at_maximum)
        found = goodness_of_fit.kolmogorov_smirnov(observed, fit)
        cell = np.diff(fit.cumulative).max() + observed.cells.max()
        assert abs(found - max(exact, outside)) <= cell


def test_distance_counts_mass_outside(rng):
    """Clipping moves a normal law's outside to the ends: a distance of that mass."""
    law = ClippedNormal(16, bits=2)
    observed = count(draw("clipped_normal", 65_536, rng, 16))
    edges = np.linspace(0, NUM_BINS, cells.NUM_CELLS + 1)
    unclipped = scipy.stats.norm(law.mean, law.std)
    normal = laws.FittedLaw(
        law.mean, law.std, 0.0, 0.0, unclipped.cdf(edges), unclipped.ppf
    )
    assert goodness_of_fit.kolmogorov_smirnov(observed, normal) == pytest.approx(
        1 / 16, rel=1e-9
    )


def test_noise_is_the_mean_divergence_of_samples_from_their_own_law(rng):
    observed = [count(draw("uniform", 4_096, rng, 16)) for _ in range(200)]
    divergence = np.array(
        [
            goodness_of_fit.jensen_shannon(each, laws.fit_laws(each)["uniform"])
            for each in observed
        ]
    )
    standard_error = divergence.std() / len(divergence) ** 0.5
    expected = goodness_of_fit.jensen_shannon_noise(observed[0])
    # The next order of the divergence is 1 / (values in a bin) of the first.
    error = 5 * standard_error + expected * cells.NUM_BINS / 4_096
    assert abs(divergence.mean() - expected) < error


@pytest.mark.parametrize(
    "repeat", [1, 5], ids=["independent", "repeated within blocks"]
)
@pytest.mark.parametrize("law", laws.LAWS)
def test_p_value_of_the_right_law_is_uniform(law, repeat, rng):
    """Whatever the dependence within blocks; the count is binomial."""
    num_runs = 100
    p_values = []
    for _ in range(num_runs):
        observed = count(draw_blocks(law, 100, 32, rng, repeat), 32)
        fits = laws.fit_laws(observed)
        p_values.append(goodness_of_fit.interior_p_values(observed, fits, rng, 99)[law])
    for level in (0.1, 0.3, 0.5, 0.8):
        rejected = int((np.array(p_values) <= level).sum())
        lowest, highest = scipy.stats.binom.interval(1 - RARE, num_runs, level)
        assert lowest <= rejected <= highest, f"{rejected} below {level}"


def test_wrong_laws_are_refused(rng):
    observed = count(draw_blocks("truncated_normal", 256, 32, rng), 32)
    p_values = goodness_of_fit.interior_p_values(observed, laws.fit_laws(observed), rng)
    assert p_values["truncated_normal"] > 0.05
    # 1 / 200 is the least that 199 resamples can give.
    for wrong in ("uniform", "normal", "clipped_normal"):
        assert p_values[wrong] == 1 / 200
