"""Which law captured positions follow, and what boundaries built on one save there.

fit_distributions asks of each tensor of a capture, at each epoch, projected or not, how
far four laws are from it, and what the solved boundaries, which assume one of these
laws, really save there. The rounding variance is computed on the positions themselves,
sum of (x - a)(c - x), so nothing is rounded and nothing of it is noise. Variances are
in bin units, as the published ones: every block counts the same, whatever its range.
"""

import numpy as np
import xarray as xr

from pipeline_src.laws.cells import (
    NUM_BINS,
    NUM_CELLS,
    count_positions,
    observed_bins,
)
from pipeline_src.laws.clipped_normal import even_boundaries, observed_rounding_variance
from pipeline_src.laws.fits import LAWS, fit_laws
from pipeline_src.laws.goodness_of_fit import (
    interior_distance,
    interior_p_values,
    jensen_shannon,
    jensen_shannon_noise,
    kolmogorov_smirnov,
)
from pipeline_src.laws.solver import solve_observed_boundaries

PROBABILITIES = np.linspace(0.005, 0.995, 199)  # of the quantiles that are kept

# name: (dims beside tensor, epoch and projected, units, long_name)
VARIABLES = {
    "jensen_shannon": (("law",), "bit", "Jensen-Shannon divergence, ends included"),
    "kolmogorov_smirnov": (("law",), "1", "Kolmogorov-Smirnov distance, ends included"),
    "ks_interior": (("law",), "1", "Kolmogorov-Smirnov distance between the ends"),
    "ks_p_value": (("law",), "1", "p-value of ks_interior, blocks resampled"),
    "fitted_mean": (("law",), "bin", "Mean of the normal density behind the law"),
    "fitted_std": (("law",), "bin", "Its standard deviation"),
    "jensen_shannon_noise": ((), "bit", "Expected divergence of a sample from its law"),
    "histogram": (("bin",), "1", "Observed share of the values in a bin"),
    "histogram_fitted": (
        ("law", "bin"),
        "1",
        "Share of the values in a bin by the law",
    ),
    "mass_at_minimum": ((), "1", "Observed share of the values on 0"),
    "mass_at_maximum": ((), "1", "Observed share of the values on the last edge"),
    "mass_at_minimum_fitted": (("law",), "1", "Share of the values on 0 by the law"),
    "mass_at_maximum_fitted": (("law",), "1", "Share on the last edge by the law"),
    "mass_outside_fitted": (("law",), "1", "Share outside all bins by the law"),
    "quantile_observed": (("probability",), "bin", "Observed quantile of the position"),
    "quantile_fitted": (("law", "probability"), "bin", "Quantile by the law"),
    "variance_reduction_predicted": ((), "1", "Variance saved by the law, fraction"),
    "variance_reduction_achieved": ((), "1", "Variance saved on the values, fraction"),
    "variance_reduction_best": (
        (),
        "1",
        "Variance that boundaries could save, fraction",
    ),
    "rounding_variance_even": ((), "bin**2", "Rounding variance, even boundaries"),
    "rounding_variance_solved": ((), "bin**2", "Rounding variance, solved boundaries"),
}
_PASSED_ON = ("block_size", "at_minimum", "at_maximum", "zero_fraction", "num_values")
_SAMPLE = ("tensor", "epoch", "projected")


def fit_distributions(
    capture: xr.Dataset,
    boundaries: xr.Dataset,
    *,
    replicates: int = 199,
    seed: int = 0,
) -> xr.Dataset:
    """Compare captured positions with four laws and with the boundaries built on one.

    Args:
        capture: `position` (tensor, epoch, projected, sample) in bin units, whole
            blocks, NaN at the end where a tensor has fewer; `block_size` (tensor,
            projected); the attribute `bits`.
        boundaries: the table of solved boundaries.
        replicates: resamples for each p-value, which is no finer than one of them.
        seed: of the resampling.

    Returns:
        Dataset of VARIABLES. NaN where there is nothing to say: no sample, no value
        between the ends, a law that does not exist for the block size, or a p-value
        from fewer than 8 blocks.

    Raises:
        ValueError: if positions leave [0, num_bins] or do not form whole blocks.
    """
    bits = int(capture.attrs["bits"])
    num_bins = 2**bits - 1
    middles = (np.arange(NUM_BINS) + 0.5) * (num_bins / NUM_BINS)
    coords = {name: capture[name].values for name in _SAMPLE} | {
        "law": np.array(LAWS),
        "bin": middles,
        "probability": PROBABILITIES,
    }
    fitted = xr.Dataset(coords=coords, attrs=dict(capture.attrs))
    for name, (dims, units, long_name) in VARIABLES.items():
        shape = [len(coords[dim]) for dim in (*_SAMPLE, *dims)]
        attrs = {"units": units, "long_name": long_name}
        fitted[name] = ((*_SAMPLE, *dims), np.full(shape, np.nan), attrs)
    fitted["law"].attrs = {"units": "1", "long_name": "Law"}
    fitted["bin"].attrs = {"units": "bin", "long_name": "Middle of a histogram bin"}
    fitted["probability"].attrs = {"units": "1", "long_name": "Probability"}
    for name in (*_SAMPLE, *_PASSED_ON):
        if name in capture:
            fitted[name] = capture[name]

    position = capture["position"].transpose(*_SAMPLE, "sample").values
    block_size = capture["block_size"].transpose("tensor", "projected").values
    seeds = np.random.SeedSequence(seed).spawn(int(np.prod(position.shape[:3])))
    for place, sequence in zip(np.ndindex(position.shape[:3]), seeds, strict=True):
        sample = position[place][~np.isnan(position[place])]
        if len(sample) == 0:
            continue
        size = int(block_size[place[0], place[2]])
        where = {
            name: coords[name][at] for name, at in zip(_SAMPLE, place, strict=True)
        }
        _check_sample(sample, size, num_bins, where)
        rng = np.random.default_rng(sequence)
        values = _compare_laws(sample, size, num_bins, rng, replicates)
        values |= _compare_boundaries(sample, size, bits, boundaries)
        for name, value in values.items():
            fitted[name].values[place] = value
    return fitted


def _check_sample(
    sample: np.ndarray, block_size: int, num_bins: int, where: dict[str, object]
) -> None:
    if sample.min() < 0 or sample.max() > num_bins:
        raise ValueError(
            f"positions must lie in [0, {num_bins}], got {sample.min()} to "
            f"{sample.max()} at {where}; are `bits` and the unit of the capture right?"
        )
    if len(sample) % block_size:
        raise ValueError(
            f"expected whole blocks of {block_size} positions, got {len(sample)} "
            f"positions at {where}"
        )


def _compare_laws(
    sample: np.ndarray,  # (num_blocks * block_size,) bin units
    block_size: int,
    num_bins: int,
    rng: np.random.Generator,
    replicates: int,
) -> dict[str, np.ndarray | float]:
    """Every variable of a sample that speaks of laws."""
    observed = count_positions(sample, block_size, num_bins)
    fits = fit_laws(observed)
    has_interior = bool(observed.interior.any())
    p_values = interior_p_values(observed, fits, rng, replicates)
    by_law: dict[str, list[np.ndarray | float]] = {
        name: [np.full(_size_of(dims), np.nan) for _ in LAWS]
        for name, (dims, _, _) in VARIABLES.items()
        if "law" in dims
    }
    for name, law in fits.items():
        row = LAWS.index(name)
        cells = np.diff(law.cumulative)
        by_law["jensen_shannon"][row] = jensen_shannon(observed, law)
        by_law["kolmogorov_smirnov"][row] = kolmogorov_smirnov(observed, law)
        if has_interior:
            by_law["ks_interior"][row] = interior_distance(observed, law)
        by_law["ks_p_value"][row] = p_values[name]
        by_law["fitted_mean"][row] = law.mean
        by_law["fitted_std"][row] = law.std
        by_law["histogram_fitted"][row] = observed_bins(cells)
        by_law["mass_at_minimum_fitted"][row] = law.at_minimum
        by_law["mass_at_maximum_fitted"][row] = law.at_maximum
        by_law["mass_outside_fitted"][row] = law.below + law.above
        by_law["quantile_fitted"][row] = law.quantile(PROBABILITIES)
    values: dict[str, np.ndarray | float] = {
        name: np.stack(rows) for name, rows in by_law.items()
    }
    return values | {
        "jensen_shannon_noise": jensen_shannon_noise(observed),
        "histogram": observed_bins(observed.cells),
        "mass_at_minimum": observed.at_minimum / observed.num_values,
        "mass_at_maximum": observed.at_maximum / observed.num_values,
        "quantile_observed": np.quantile(sample.astype(np.float64), PROBABILITIES),
    }


def _compare_boundaries(
    sample: np.ndarray,  # (num_values,) bin units
    block_size: int,
    bits: int,
    table: xr.Dataset,
) -> dict[str, float]:
    """Rounding variance of a sample under even, solved and its own best boundaries."""
    even = even_boundaries(bits)
    variance_even = observed_rounding_variance(even, sample)
    tabulated = table.sel(bits=bits)
    if block_size < int(table["block_size"].min()):
        solved, predicted = even, 0.0  # what training uses for such blocks
    else:
        nearest = tabulated.sel(block_size=block_size, method="nearest")
        solved = nearest["boundaries"].values[: len(even)]
        predicted = float(nearest["variance_reduction"])
    variance = observed_rounding_variance(solved, sample)
    num_bins = len(even) - 1
    inside = sample[(sample > 0) & (sample < num_bins)]
    cells, _ = np.histogram(inside, NUM_CELLS, (0, num_bins))
    own = observed_rounding_variance(solve_observed_boundaries(bits, cells), sample)
    # The search finds a local minimum: the best known is the least of the three.
    best = min(variance_even, variance, own)
    varies = variance_even > 0
    return {
        "variance_reduction_predicted": predicted,
        "variance_reduction_achieved": 1 - variance / variance_even
        if varies
        else np.nan,
        "variance_reduction_best": 1 - best / variance_even if varies else np.nan,
        "rounding_variance_even": variance_even,
        "rounding_variance_solved": variance,
    }


def _size_of(dims: tuple[str, ...]) -> tuple[int, ...]:
    sizes = {"bin": NUM_BINS, "probability": len(PROBABILITIES)}
    return tuple(sizes[dim] for dim in dims if dim != "law")
