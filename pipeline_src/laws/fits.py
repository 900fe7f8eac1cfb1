"""Four laws for the positions in a block, fitted to those observed.

A continuous law has no mass on the ends of a block; a normal law has some outside. The
published clipped normal has no parameter to fit. One with fitted parameters would have
the truncated normal's density on the interior, so its answer is there already.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from pipeline_src.laws.cells import EDGES, ObservedPositions, cumulate, moments
from pipeline_src.laws.clipped_normal import SMALLEST_BLOCK, ClippedNormal
from pipeline_src.laws.truncated_normal import fit_truncated, truncated_cells

LAWS = ("uniform", "normal", "truncated_normal", "clipped_normal")


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


def fit_laws(observed: ObservedPositions) -> dict[str, FittedLaw]:
    """Fit each law to the interior: the ends were put there by normalization.

    A law is left out where it has no meaning: the normal laws without interior values,
    the clipped normal for blocks below 3 values.
    """
    num_bins = observed.num_bins
    fits = {
        "uniform": FittedLaw(
            np.nan, np.nan, 0.0, 0.0, EDGES, lambda share: share * num_bins
        )
    }
    cells = observed.cells
    if cells.sum() > 0:
        mean, std = (float(value) * num_bins for value in moments(cells))
        fits["normal"] = FittedLaw(
            mean,
            std,
            0.0,
            0.0,
            ndtr((EDGES * num_bins - mean) / std),
            lambda share: mean + std * ndtri(share),
        )
        fits["truncated_normal"] = _truncated_law(fit_truncated(cells), num_bins)
    if observed.block_size >= SMALLEST_BLOCK:
        law = ClippedNormal(observed.block_size, round(np.log2(num_bins + 1)))
        fits["clipped_normal"] = FittedLaw(
            law.mean,
            float(law.std),
            float(law.edge_mass),
            float(law.edge_mass),
            ndtr((EDGES * num_bins - law.mean) / law.std),
            law.quantile,
        )
    return fits


def _truncated_law(natural: np.ndarray, num_bins: int) -> FittedLaw:
    cumulative = cumulate(truncated_cells(natural))
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
        quantile=lambda share: np.interp(share, cumulative, EDGES * num_bins),
    )
