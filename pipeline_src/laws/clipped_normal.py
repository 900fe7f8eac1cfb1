"""The law that boundaries are solved for, and the variance that rounding adds.

It is the clipped normal of Eliassen & Selvan 2024 (arXiv:2309.11856): normal
around the middle, its standard deviation such that each end gathers a mass of
1 / block_size, for min-max normalization puts one value of a block on each end. Mass on
an edge is rounded without error, so the two ends add nothing to the variance

    V = sum over bins [a, c] of  integral of (x - a)(c - x) p(x) dx,

which is that of rounding x up or down without bias between neighbouring edges a and c.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

PACKABLE_BITS = (1, 2, 4, 8)
# Below 3 values per block the two ends would gather all the mass.
SMALLEST_BLOCK = 3


@dataclass(frozen=True)
class ClippedNormal:
    """Law of the positions in a block: a normal law clipped to [0, num_bins].

    Args:
        block_size: values per block, at least 3; one number or an array of them.
        bits: width of one code; positions run from 0 to num_bins = 2**bits - 1.

    >>> law = ClippedNormal(block_size=16, bits=2)
    >>> law.mean, round(float(law.std), 4), law.edge_mass
    (1.5, 0.9778, 0.0625)
    """

    block_size: int | np.ndarray
    bits: int

    def __post_init__(self) -> None:
        """Refuse what has no such law."""
        check_bits(self.bits)
        if np.min(self.block_size) < SMALLEST_BLOCK:
            raise ValueError(
                f"block_size must be at least {SMALLEST_BLOCK} for a clipped normal, "
                f"got {np.min(self.block_size)}; use even boundaries for such blocks"
            )

    @property
    def num_bins(self) -> int:
        """Bins between 2**bits boundaries."""
        return 2**self.bits - 1

    @property
    def mean(self) -> float:
        """Mean before clipping, bin units."""
        return self.num_bins / 2

    @property
    def std(self) -> np.ndarray:
        """Standard deviation before clipping, bin units, shaped like block_size."""
        return np.asarray(-self.mean / ndtri(self.edge_mass))

    @property
    def edge_mass(self) -> float | np.ndarray:
        """Mass on 0, and as much on num_bins."""
        return 1 / self.block_size

    def quantile(
        self,
        probability: np.ndarray,  # 0..1
    ) -> np.ndarray:
        """Position below which a fraction `probability` of the values lies."""
        return np.clip(self.mean + self.std * ndtri(probability), 0, self.num_bins)


def even_boundaries(bits: int) -> np.ndarray:
    """Boundaries 0, 1, ..., num_bins: best for positions spread uniformly."""
    check_bits(bits)
    return np.arange(2**bits, dtype=np.float64)


def rounding_variance(
    boundaries: np.ndarray,  # (..., num_levels) bin units, increasing 0 to num_bins
    law: ClippedNormal,  # of one block size, or of one per leading index
) -> np.ndarray:
    """Mean variance that stochastic rounding adds, in squared bin units.

    Closed form: with m0, m1, m2 the moments of the normal law cut to a bin [a, c], the
    bin adds -m2 + (a + c) m1 - a c m0. The two ends have no rounding variance.

    >>> law = ClippedNormal(block_size=16, bits=2)
    >>> round(float(rounding_variance(even_boundaries(2), law)), 5)
    0.14694
    """
    std = np.asarray(law.std)[..., None]
    # In standard deviations from the mean; the variance scales with std**2.
    z = (np.asarray(boundaries, dtype=np.float64) - law.mean) / std
    lower, upper = z[..., :-1], z[..., 1:]
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    mass = np.diff(ndtr(z), axis=-1)
    first = -np.diff(density, axis=-1)
    second = mass - np.diff(z * density, axis=-1)
    per_bin = -second + (lower + upper) * first - lower * upper * mass
    return std[..., 0] ** 2 * per_bin.sum(axis=-1)


def observed_rounding_variance(
    boundaries: np.ndarray,  # (num_levels,) bin units, increasing 0 to num_bins
    position: np.ndarray,  # (num_values,) bin units, 0 to num_bins
) -> float:
    """Mean variance that stochastic rounding adds to given positions, in bins squared.

    Conditional on the positions, so exact: nothing is rounded at random.
    """
    position = np.asarray(position, dtype=np.float64)
    lower = np.searchsorted(boundaries[1:-1], position, side="right")
    variance = (position - boundaries[lower]) * (boundaries[lower + 1] - position)
    return float(variance.mean())


def check_bits(bits: int) -> None:
    """Refuse bits that cannot be packed."""
    if bits not in PACKABLE_BITS:
        raise ValueError(f"bits must be one of {PACKABLE_BITS}, got {bits}")
