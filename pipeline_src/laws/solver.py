"""Where the edges of the bins go: boundaries that make stochastic rounding least noisy.

The mean variance V of clipped_normal.py has, by an inner edge b between its neighbours
a and c, the derivative

    dV/db = integral from a to b of (x - a) p(x) dx
          - integral from b to c of (c - x) p(x) dx,

and the second derivatives are p(b)(c - a) on the diagonal and minus the mass of the bin
beside it: a tridiagonal system, solved by Newton's method for all block sizes at once.
The authors' code evaluates a fitted polynomial for 2 bits; here the minimum itself is
found, for every number of bits.

Edges are solved by Gauss-Legendre quadrature of the two integrals above, not by
differences of truncated moments: at 8 bits and 4 values per block a bin is 1/190 of a
standard deviation wide, and such differences would leave an error of 5e-11 bins where
quadrature leaves 1e-14 (against 40 digits). For V itself the closed form is good to
6e-12 of V.
"""

import numpy as np
from scipy.special import ndtr, ndtri

from pipeline_src.laws.clipped_normal import (
    ClippedNormal,
    check_bits,
    even_boundaries,
)

# The widest bin solved here is 3.5 standard deviations (1 edge between, 4096 values per
# block). On it 16 nodes integrate a normal density times a line to 1e-15.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_MAX_STEPS = 50
_STEP_TOLERANCE = 1e-11  # bin units; Newton's error after the step is its square


def solve_boundaries(
    bits: int,
    block_size: np.ndarray,  # (num_sizes,) int, at least 3
) -> np.ndarray:
    """Boundaries of least rounding variance under ClippedNormal(block_size, bits).

    Newton's method from the compander of high resolution, edge density in proportion to
    p**(1/3). The law is symmetric, so half of the edges are unknown. A step that would
    let two edges meet is shortened, for its block size alone.

    Returns:
        (num_sizes, 2**bits) float64, bin units: first column 0, last num_bins.

    Raises:
        ValueError: for bits that cannot be packed or a block below 3 values.
        RuntimeError: if Newton's method does not converge.

    >>> solve_boundaries(2, np.array([16])).round(4).tolist()
    [[0.0, 1.05, 1.95, 3.0]]
    """
    law = ClippedNormal(np.atleast_1d(np.asarray(block_size)), bits)
    num_unknown = (law.num_bins - 1) // 2
    half = _compander(law)[: num_unknown + 1]
    if num_unknown:
        # Up to the mirror image of the last unknown edge.
        edges = np.vstack([half, law.num_bins - half[-1:]])
        half = _minimize(edges, law)[:-1]
    return np.vstack([half, law.num_bins - half[::-1]]).T


def solve_observed_boundaries(
    bits: int,
    mass: np.ndarray,  # (num_cells,) weights of even cells over [0, num_bins]
    sweeps: int = 200,
) -> np.ndarray:
    """Boundaries of least rounding variance for a histogram of positions.

    For any density, V is convex in each edge alone and least where the cumulative
    distribution F(b) equals the mean of F over [a, c]. Odd and even edges take turns at
    this exact minimum, so V never rises. The result is a local minimum: an observed
    distribution may have several. Leave values on 0 and num_bins out of the histogram.

    Returns:
        (2**bits,) float64, bin units.
    """
    check_bits(bits)
    num_bins, num_cells = 2**bits - 1, len(mass)
    if not mass.sum() > 0:
        return even_boundaries(bits)
    cell = num_bins / num_cells
    edges = np.linspace(0, num_bins, num_cells + 1)
    density = mass / (mass.sum() * cell)
    below = np.concatenate([[0.0], np.cumsum(density * cell)])  # F at cell edges
    # Integral of F from 0 to each cell edge; F is linear within a cell.
    area = np.concatenate([[0.0], np.cumsum((below[1:] + below[:-1]) / 2 * cell)])

    def integral_of_cumulative(position: np.ndarray) -> np.ndarray:
        index = np.minimum((position / cell).astype(int), num_cells - 1)
        offset = position - edges[index]
        return area[index] + below[index] * offset + density[index] * offset**2 / 2

    compander = np.concatenate([[0.0], np.cumsum(np.cbrt(density))])
    boundaries = np.interp(
        np.linspace(0, compander[-1], num_bins + 1), compander, edges
    )
    boundaries[[0, -1]] = 0.0, num_bins  # not the ends of what the values occupy
    for _ in range(sweeps):
        for start in (1, 2):
            moved = np.arange(start, num_bins, 2)
            below_bin, above_bin = boundaries[moved - 1], boundaries[moved + 1]
            area_between = integral_of_cumulative(above_bin) - integral_of_cumulative(
                below_bin
            )
            width = np.maximum(above_bin - below_bin, np.finfo(float).tiny)
            target = np.interp(area_between / width, below, edges)
            boundaries[moved] = np.clip(target, below_bin, above_bin)
    return boundaries


def _minimize(
    edges: np.ndarray,  # (num_unknown + 2, num_sizes)
    law: ClippedNormal,
) -> np.ndarray:
    """Edges of least variance, by Newton's method from a start.

    The first edge stays; the last is the mirror image of the one before it.
    """
    # Edges lie along axis 0: each step of the elimination is then one row.
    edges = edges.copy()
    first = np.zeros_like(law.std)[None]
    for _ in range(_MAX_STEPS):
        step = _newton_step(edges, law)
        step = np.vstack([first, step, -step[-1:]])
        size = np.abs(step).max()
        # A Newton step may not take more than 0.9 of any bin away.
        worst = (-np.diff(step, axis=0) / np.diff(edges, axis=0)).max(axis=0)
        edges += step * np.where(worst > 0.9, 0.9 / np.maximum(worst, 0.9), 1.0)
        if size < _STEP_TOLERANCE:
            return edges
    raise RuntimeError(
        f"boundaries for bits={law.bits} did not converge in {_MAX_STEPS} steps: "
        f"the last one still moved an edge by {size:.1e} bins"
    )


def _compander(law: ClippedNormal) -> np.ndarray:
    """Edges with p**(1/3) of them per unit, (num_levels, num_sizes) bin units.

    The cube root of a normal density is one of sqrt(3) times the standard deviation.
    """
    wide = np.sqrt(3) * law.std
    lowest = ndtr(-law.mean / wide)
    share = np.linspace(0, 1, law.num_bins + 1)[:, None]
    edges = law.mean + wide * ndtri(lowest + share * (1 - 2 * lowest))
    edges[0], edges[-1] = 0.0, law.num_bins
    return edges


def _newton_step(
    edges: np.ndarray,  # (num_unknown + 2, num_sizes)
    law: ClippedNormal,
) -> np.ndarray:
    """Step of the unknown edges towards dV/db = 0, (num_unknown, num_sizes).

    Elimination down and substitution up, row by row over all block sizes (Thomas).
    """
    mass, from_lower, from_upper = _bin_moments(edges, law)
    z = (edges[1:-1] - law.mean) / law.std
    density = np.exp(-(z**2) / 2) / (np.sqrt(2 * np.pi) * law.std)
    slope = from_lower[:-1] - from_upper[1:]
    diagonal = density * (edges[2:] - edges[:-2])
    # The last unknown pushes its own image, which is its upper neighbour.
    diagonal[-1] += mass[-1]
    for row in range(1, len(slope)):
        factor = mass[row] / diagonal[row - 1]
        diagonal[row] -= factor * mass[row]
        slope[row] += factor * slope[row - 1]
    step = -slope / diagonal
    for row in range(len(slope) - 2, -1, -1):
        step[row] += mass[row + 1] / diagonal[row] * step[row + 1]
    return step


def _bin_moments(
    edges: np.ndarray,  # (num_bins + 1, num_sizes) bin units
    law: ClippedNormal,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per bin [a, c]: integrals of p, of (x - a) p and of (c - x) p."""
    half_width = np.diff(edges, axis=0) / 2
    middle = (edges[1:] + edges[:-1] - 2 * law.mean) / (2 * law.std)
    reach = half_width / law.std
    total = np.zeros_like(middle)
    tilted = np.zeros_like(middle)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        density = weight * np.exp(-((middle + node * reach) ** 2) / 2)
        total += density
        tilted += node * density
    scale = reach / np.sqrt(2 * np.pi)
    total *= scale
    tilted *= scale * half_width
    return total, half_width * total + tilted, half_width * total - tilted
