"""The table of solved boundaries: every number of bits, every block size."""

import numpy as np
import xarray as xr

from pipeline_src.laws.clipped_normal import (
    PACKABLE_BITS,
    ClippedNormal,
    even_boundaries,
    rounding_variance,
)
from pipeline_src.laws.solver import solve_boundaries

BLOCK_SIZES = np.arange(4, 4097)

# Edges are kept to 2**-20 bins, an error of at most 5e-7: training uses float32,
# which is coarser from 16 bins up. The file takes 2.7 MB; all digits of float64 would
# take 6.3 MB. V is flat at its minimum: this raises it by less than 1e-12.
_EDGE_GRID = 2.0**20


def boundary_table(block_size: np.ndarray = BLOCK_SIZES) -> xr.Dataset:
    """Boundaries of least rounding variance for clipped-normal positions.

    Returns:
        Dataset over (bits, block_size, level); boundaries are NaN past 2**bits levels,
        alpha is the first inner boundary, NaN for 1 bit, which has none.
    """
    shape = (len(PACKABLE_BITS), len(block_size))
    boundaries = np.full((*shape, 2 ** max(PACKABLE_BITS)), np.nan)
    alpha = np.full(shape, np.nan)
    variance, variance_even = np.empty(shape), np.empty(shape)
    for row, bits in enumerate(PACKABLE_BITS):
        law = ClippedNormal(block_size, bits)
        solved = np.round(solve_boundaries(bits, block_size) * _EDGE_GRID) / _EDGE_GRID
        boundaries[row, :, : 2**bits] = solved
        if bits > 1:
            alpha[row] = solved[:, 1]
        variance[row] = rounding_variance(solved, law)
        variance_even[row] = rounding_variance(even_boundaries(bits), law)

    sizes = ("bits", "block_size")
    table = xr.Dataset(
        {
            "boundaries": ((*sizes, "level"), boundaries),
            "alpha": (sizes, alpha),
            "rounding_variance": (sizes, variance),
            "rounding_variance_even": (sizes, variance_even),
            "variance_reduction": (sizes, 1 - variance / variance_even),
        },
        coords={
            "bits": list(PACKABLE_BITS),
            "block_size": block_size,
            "level": np.arange(boundaries.shape[-1]),
        },
        attrs={
            "title": "Boundaries of least stochastic-rounding variance",
            "law": "clipped normal with mass 1 / block_size on each end",
            "source": "Eliassen & Selvan 2024, arXiv:2309.11856",
        },
    )
    for name, (units, long_name) in _MEANINGS.items():
        table[name].attrs = {"units": units, "long_name": long_name}
    return table


_MEANINGS = {
    "boundaries": ("bin", "Edges of the bins"),
    "alpha": ("bin", "First inner edge"),
    "rounding_variance": ("bin**2", "Rounding variance with solved boundaries"),
    "rounding_variance_even": ("bin**2", "Rounding variance with even boundaries"),
    "variance_reduction": ("1", "Variance saved against even boundaries, fraction"),
    "bits": ("bit", "Width of one code"),
    "block_size": ("1", "Values per block"),
    "level": ("1", "Code value"),
}
