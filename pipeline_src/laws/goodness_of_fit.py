"""How far a law is from observed positions, and whether chance explains it.

* Jensen-Shannon divergence: over 64 interior bins, both ends, and the two outsides.
* Kolmogorov-Smirnov distance: between whole distributions, at all cell edges and on
  both sides of the ends. It misses at most the mass of one cell.
* Its p-value asks about the interior alone. The ends hold what normalization put there:
  a law without end masses would be refused for that, whatever its shape.

Positions of one block share its minimum and maximum, so they are dependent, and a law
simulated value by value would be refused too often. The p-value comes from whole blocks
resampled with replacement: if the law holds, the difference of the observed and the
fitted distribution varies around 0 as the resampled difference does around the observed
one (Babu & Rao 2004, "Goodness-of-fit tests when parameters are estimated"). Parameters
are fitted again to each resample, as in Lilliefors' test.
"""

import numpy as np
from scipy.special import ndtr, xlogy

from pipeline_src.laws.cells import (
    EDGES,
    ObservedPositions,
    cumulate,
    moments,
    observed_bins,
)
from pipeline_src.laws.fits import FittedLaw
from pipeline_src.laws.truncated_normal import (
    fit_truncated,
    refit_truncated,
    truncated_cells,
)

# With fewer, the resampled distribution has too few shapes to judge by.
MIN_CLUSTERS = 8


def jensen_shannon(observed: ObservedPositions, law: FittedLaw) -> float:
    """Jensen-Shannon divergence in bits, 0 (equal) to 1 (nothing in common)."""
    ends = np.array([0, observed.at_minimum, observed.at_maximum, 0])
    p = np.concatenate([ends / observed.num_values, observed_bins(observed.cells)])
    ends = np.array([law.below, law.at_minimum, law.at_maximum, law.above])
    q = np.concatenate([ends, observed_bins(np.diff(law.cumulative))])
    return jensen_shannon_divergence(p, q)


def jensen_shannon_divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence of two distributions over the same cells, in bits.

    >>> jensen_shannon_divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    1.0
    """
    # Rounding may leave -1e-17 where a law has no mass.
    p, q = np.maximum(p, 0), np.maximum(q, 0)
    middle = (p + q) / 2
    nats = xlogy(p, p).sum() + xlogy(q, q).sum() - 2 * xlogy(middle, middle).sum()
    return float(np.clip(nats / 2 / np.log(2), 0, 1))


def jensen_shannon_noise(observed: ObservedPositions) -> float:
    """Divergence that a sample of this size has from its own law on average, in bits.

    The divergence of close distributions is chi-squared / (8 n) nats, and chi-squared
    has the mean (cells in use - 1); dependence within blocks is not counted.
    """
    used = np.count_nonzero(observed_bins(observed.cells))
    used += (observed.at_minimum > 0) + (observed.at_maximum > 0)
    return (used - 1) / (8 * observed.num_values * np.log(2))


def kolmogorov_smirnov(observed: ObservedPositions, law: FittedLaw) -> float:
    """Largest difference of the two cumulative distributions, ends included."""
    share = observed.at_minimum / observed.num_values
    cumulative = share + np.concatenate([[0.0], np.cumsum(observed.cells)])
    inside = np.abs(cumulative - law.cumulative).max()
    return float(max(inside, law.below, law.above))


def interior_distance(observed: ObservedPositions, law: FittedLaw) -> float:
    """Kolmogorov-Smirnov distance of what lies strictly between the ends."""
    gap = cumulate(observed.cells) - _normalized(law.cumulative)
    return float(np.abs(gap).max())


def interior_p_values(
    observed: ObservedPositions,
    fits: dict[str, FittedLaw],
    rng: np.random.Generator,
    replicates: int = 199,
) -> dict[str, float]:
    """Chance of an interior distance as large, if the law held; NaN for few blocks."""
    num_clusters = len(observed.interior)
    whole = observed.interior.sum(axis=0)
    if num_clusters < MIN_CLUSTERS or whole.sum() == 0:
        return dict.fromkeys(fits, np.nan)
    weights = rng.multinomial(
        num_clusters, np.full(num_clusters, 1 / num_clusters), size=replicates
    )
    cells = weights @ observed.interior
    cells = cells[cells.sum(axis=1) > 0]
    shift = cumulate(cells) - cumulate(whole)
    # Resampling num_clusters of them has that much less spread than drawing them anew.
    spread = np.sqrt(num_clusters / (num_clusters - 1))
    p_values = {}
    for name, law in fits.items():
        refitted = shift - _refit_shift(name, law, whole, cells)
        distance = spread * np.abs(refitted).max(axis=1)
        exceeding = int((distance >= interior_distance(observed, law)).sum())
        p_values[name] = (1 + exceeding) / (1 + len(cells))
    return p_values


def _normalized(cumulative: np.ndarray) -> np.ndarray:
    """Cumulative distribution at the cell edges, cut to the interior."""
    rising = cumulative - cumulative[..., :1]
    return rising / rising[..., -1:]


def _refit_shift(
    name: str,
    law: FittedLaw,
    whole: np.ndarray,  # (NUM_CELLS,) observed interior
    cells: np.ndarray,  # (replicates, NUM_CELLS) resampled interiors
) -> np.ndarray | float:
    """How fitting to the resampled interiors moves the law's own interior."""
    if name == "normal":
        mean, std = moments(cells)
        refitted = ndtr((EDGES - mean[:, None]) / std[:, None])
        return _normalized(refitted) - _normalized(law.cumulative)
    if name == "truncated_normal":
        fitted = fit_truncated(whole)
        refitted = cumulate(truncated_cells(refit_truncated(fitted, whole, cells)))
        return refitted - cumulate(truncated_cells(fitted))
    return 0.0
