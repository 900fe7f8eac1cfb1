"""The truncated normal of greatest likelihood, and its quick refit to a resample."""

import numpy as np
import scipy.stats
from made_up_positions import NUM_BINS, count, draw

from pipeline_src.laws.cells import NUM_CELLS
from pipeline_src.laws.fits import fit_laws
from pipeline_src.laws.truncated_normal import (
    fit_truncated,
    refit_truncated,
    truncated_cells,
)


def test_truncated_fit_is_the_likelihood_s_maximum(rng):
    sample = draw("truncated_normal", 20_000, rng, 16)
    fit = fit_laws(count(sample))["truncated_normal"]

    def log_likelihood(mean, std):
        cut = (0 - mean) / std, (NUM_BINS - mean) / std
        return scipy.stats.truncnorm(*cut, mean, std).logpdf(sample).mean()

    best = log_likelihood(fit.mean, fit.std)
    for change in (0.97, 0.99, 1.01, 1.03):
        assert log_likelihood(fit.mean * change, fit.std) < best
        assert log_likelihood(fit.mean, fit.std * change) < best


def test_one_newton_step_refits_to_second_order(rng):
    """Half the change of the sample leaves a quarter of the error, not half."""
    whole = count(draw("truncated_normal", 65_536, rng, 16)).interior.sum(axis=0)
    tilt = np.linspace(-1, 1, NUM_CELLS)
    fitted = fit_truncated(whole)
    errors = []
    for size in (0.1, 0.05):
        cells = whole * (1 + size * tilt)
        exact = truncated_cells(fit_truncated(cells)).cumsum()
        stepped = truncated_cells(refit_truncated(fitted, whole, cells[None]))[0]
        errors.append(np.abs(stepped.cumsum() - exact).max())
    assert errors[1] < 0.3 * errors[0]
