"""Four laws for the positions in a block, and how far each is from those observed.

Min-max normalization makes positions a mixture: one value of each block lies exactly on
0 and one exactly on num_bins (more of them after a ReLU), the others lie in between. So
a distribution here is three things: mass on 0, mass on num_bins, and an interior,
counted in 1,024 even cells. A continuous law has no mass on the ends; a normal law has
some outside.

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

The published clipped normal has no parameter to fit. One with fitted parameters would
have the truncated normal's density on the interior, so its answer is there already.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, xlogy

from pipeline_src.quant.boundaries import SMALLEST_BLOCK, ClippedNormal

LAWS = ("uniform", "normal", "truncated_normal", "clipped_normal")
NUM_CELLS = 1024
NUM_BINS = 64  # of the histogram; must divide NUM_CELLS
# Blocks are resampled in at most so many clusters of neighbours. It bounds the cost;
# clusters of independent blocks are as independent.
MAX_CLUSTERS = 128
# With fewer, the resampled distribution has too few shapes to judge by.
MIN_CLUSTERS = 8

_EDGES = np.linspace(0, 1, NUM_CELLS + 1)  # of the cells, as fractions of num_bins
_MIDDLES = (_EDGES[:-1] + _EDGES[1:]) / 2
# Sufficient statistics of a truncated normal, at the cells, in t = -1..1.
_POWERS = np.stack([2 * _MIDDLES - 1, (2 * _MIDDLES - 1) ** 2])


@dataclass(frozen=True)
class ObservedPositions:
    """Positions of a sample of blocks, counted.

    Args:
        num_bins: largest position.
        block_size: values per block.
        at_minimum: values on 0.
        at_maximum: values on num_bins.
        interior: (num_clusters, NUM_CELLS) values in between, by cluster of blocks.
    """

    num_bins: int
    block_size: int
    at_minimum: int
    at_maximum: int
    interior: np.ndarray

    @property
    def num_values(self) -> int:
        """All values."""
        return self.at_minimum + self.at_maximum + int(self.interior.sum())

    @property
    def cells(self) -> np.ndarray:
        """(NUM_CELLS,) share of all values in each interior cell."""
        return self.interior.sum(axis=0) / self.num_values


@dataclass(frozen=True)
class FittedLaw:
    """A law of positions, at the edges of the cells.

    Args:
        mean: of the normal density behind the law, bin units; NaN if there is none.
        std: likewise; infinite, and the mean NaN, where a truncated normal has become
            an exponential.
        at_minimum: mass on 0.
        at_maximum: mass on num_bins.
        cumulative: (NUM_CELLS + 1,) mass below each cell edge, plus that on 0.
        quantile: position at given probabilities, bin units.
    """

    mean: float
    std: float
    at_minimum: float
    at_maximum: float
    cumulative: np.ndarray
    quantile: Callable[[np.ndarray], np.ndarray]

    @property
    def below(self) -> float:
        """Mass at negative positions."""
        return float(self.cumulative[0] - self.at_minimum)

    @property
    def above(self) -> float:
        """Mass beyond num_bins."""
        return float(1 - self.cumulative[-1] - self.at_maximum)


def count_positions(
    position: np.ndarray,  # (num_blocks * block_size,) bin units
    block_size: int,
    num_bins: int,
) -> ObservedPositions:
    """Count positions by cell and by cluster of blocks."""
    num_blocks = len(position) // block_size
    num_clusters = min(num_blocks, MAX_CLUSTERS)
    block = np.arange(len(position)) // block_size
    inside = (position > 0) & (position < num_bins)
    cell = (position[inside].astype(np.float64) * (NUM_CELLS / num_bins)).astype(int)
    cluster = block[inside] * num_clusters // num_blocks
    slot = cluster * NUM_CELLS + np.minimum(cell, NUM_CELLS - 1)
    counted = np.bincount(slot, minlength=num_clusters * NUM_CELLS)
    return ObservedPositions(
        num_bins=num_bins,
        block_size=block_size,
        at_minimum=int((position == 0).sum()),
        at_maximum=int((position == num_bins).sum()),
        interior=counted.reshape(num_clusters, NUM_CELLS).astype(np.float64),
    )


def fit_laws(observed: ObservedPositions) -> dict[str, FittedLaw]:
    """Fit each law to the interior: the ends were put there by normalization.

    A law is left out where it has no meaning: the normal laws without interior values,
    the clipped normal for blocks below 3 values.
    """
    num_bins = observed.num_bins
    fits = {
        "uniform": FittedLaw(
            np.nan, np.nan, 0.0, 0.0, _EDGES, lambda share: share * num_bins
        )
    }
    cells = observed.cells
    if cells.sum() > 0:
        mean, std = (float(value) * num_bins for value in _moments(cells))
        fits["normal"] = FittedLaw(
            mean,
            std,
            0.0,
            0.0,
            ndtr((_EDGES * num_bins - mean) / std),
            lambda share: mean + std * ndtri(share),
        )
        fits["truncated_normal"] = _truncated_law(_fit_truncated(cells), num_bins)
    if observed.block_size >= SMALLEST_BLOCK:
        law = ClippedNormal(observed.block_size, round(np.log2(num_bins + 1)))
        fits["clipped_normal"] = FittedLaw(
            law.mean,
            float(law.std),
            float(law.edge_mass),
            float(law.edge_mass),
            ndtr((_EDGES * num_bins - law.mean) / law.std),
            law.quantile,
        )
    return fits


def observed_bins(cells: np.ndarray) -> np.ndarray:
    """Sum cells (..., NUM_CELLS) to the bins of the histogram (..., NUM_BINS)."""
    return cells.reshape(*cells.shape[:-1], NUM_BINS, -1).sum(axis=-1)


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
    return float(np.abs(_interior_gap(observed, law)).max())


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
    shift = _cumulative(cells) - _cumulative(whole)
    # Resampling num_clusters of them has that much less spread than drawing them anew.
    spread = np.sqrt(num_clusters / (num_clusters - 1))
    p_values = {}
    for name, law in fits.items():
        refitted = shift - _refit_shift(name, law, whole, cells)
        distance = spread * np.abs(refitted).max(axis=1)
        exceeding = int((distance >= interior_distance(observed, law)).sum())
        p_values[name] = (1 + exceeding) / (1 + len(cells))
    return p_values


def _interior_gap(observed: ObservedPositions, law: FittedLaw) -> np.ndarray:
    return _cumulative(observed.cells) - _normalized(law.cumulative)


def _cumulative(cells: np.ndarray) -> np.ndarray:
    """Cumulative distribution at the cell edges, given the interior."""
    summed = np.zeros((*cells.shape[:-1], NUM_CELLS + 1))
    np.cumsum(cells, axis=-1, out=summed[..., 1:])
    return summed / summed[..., -1:]


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
        mean, std = _moments(cells)
        refitted = ndtr((_EDGES - mean[:, None]) / std[:, None])
        return _normalized(refitted) - _normalized(law.cumulative)
    if name == "truncated_normal":
        fitted = _fit_truncated(whole)
        moved = _average_powers(cells) - _average_powers(whole)
        # One Newton step: resampled averages lie within O(n**-1/2) of the observed.
        _, curvature = _truncated_moments(fitted)
        if fitted[1] == 0:
            step = np.stack([moved[:, 0] / curvature[0, 0], np.zeros(len(moved))], 1)
        else:
            step = moved @ np.linalg.pinv(curvature)
        refitted = _cumulative(_truncated_cells(fitted + step))
        return refitted - _cumulative(_truncated_cells(fitted))
    return 0.0


def _moments(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of (..., NUM_CELLS), as fractions of num_bins."""
    share = cells / cells.sum(axis=-1, keepdims=True)
    mean = share @ _MIDDLES
    # The spread within a cell too: a single cell in use has no spread otherwise.
    square = share @ _MIDDLES**2 - mean**2 + 1 / (12 * NUM_CELLS**2)
    return mean, np.sqrt(square)


def _average_powers(cells: np.ndarray) -> np.ndarray:
    return (cells / cells.sum(axis=-1, keepdims=True)) @ _POWERS.T


def _truncated_cells(natural: np.ndarray) -> np.ndarray:
    """Mass of the cells under density exp(natural . (t, t**2)) cut to -1..1."""
    exponent = natural @ _POWERS
    cells = np.exp(exponent - exponent.max(axis=-1, keepdims=True))
    return cells / cells.sum(axis=-1, keepdims=True)


def _truncated_moments(natural: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (t, t**2)."""
    cells = _truncated_cells(natural)
    mean = _POWERS @ cells
    centred = _POWERS - mean[:, None]
    return mean, (centred * cells) @ centred.T


def _fit_truncated(cells: np.ndarray) -> np.ndarray:
    """Natural parameters (2,) of the truncated normal of greatest likelihood.

    The log-likelihood of an exponential family is concave, and greatest where the mean
    of (t, t**2) is the observed one. If that is at a positive second parameter, the
    density would be least inside: the closest normal is the limit, an exponential.
    """
    fitted = _maximize(cells, free=2)
    return fitted if fitted[1] <= 0 else _maximize(cells, free=1)


def _maximize(cells: np.ndarray, free: int) -> np.ndarray:
    """Damped Newton ascent in the first `free` natural parameters, the others 0."""
    target = _average_powers(cells)
    mean, std = _moments(cells)
    variance = (2 * std) ** 2
    natural = np.array([(2 * mean - 1) / variance, -1 / (2 * variance)])
    natural[free:] = 0
    if 2 * std < 4 / NUM_CELLS:  # narrower than two cells: cutting changes nothing
        return natural

    def cost(parameters: np.ndarray) -> float:
        exponent = parameters @ _POWERS
        top = exponent.max()
        return float(top + np.log(np.exp(exponent - top).sum()) - parameters @ target)

    current = cost(natural)
    for _ in range(100):
        average, curvature = _truncated_moments(natural)
        slope = (target - average)[:free]
        step = np.zeros(2)
        step[:free] = np.linalg.lstsq(curvature[:free, :free], slope, rcond=None)[0]
        gain = float(slope @ step[:free])  # twice what a full step is expected to gain
        if gain < 1e-14:
            break
        length = 1.0
        while cost(natural + length * step) > current - 1e-4 * length * gain:
            length /= 2
            if length < 1e-10:
                return natural
        natural = natural + length * step
        current = cost(natural)
    return natural


def _truncated_law(natural: np.ndarray, num_bins: int) -> FittedLaw:
    cumulative = _cumulative(_truncated_cells(natural))
    mean, std = np.nan, np.inf
    if natural[1] < 0:
        variance = -1 / (2 * natural[1])
        mean = num_bins * (natural[0] * variance + 1) / 2
        std = num_bins * np.sqrt(variance) / 2
    return FittedLaw(
        mean=float(mean),
        std=float(std),
        at_minimum=0.0,
        at_maximum=0.0,
        cumulative=cumulative,
        quantile=lambda share: np.interp(share, cumulative, _EDGES * num_bins),
    )
