"""Observed activations: where their values lie in a block, and which law that follows.

Training calls observe_blocks on activations it keeps for backward, and the positions
become a capture dataset. fit_distributions asks of each tensor, at each epoch,
projected or not, how far four laws are from it (laws.py), and what the solved
boundaries, which assume one of these laws, really save there. The rounding variance is
computed on the positions themselves, sum of (x - a)(c - x), so nothing is rounded and
nothing of it is noise. Variances are in bin units, as the published ones: every block
counts the same, whatever its range.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pipeline_src.experiment import laws
from pipeline_src.quant.boundaries import (
    even_boundaries,
    observed_rounding_variance,
    solve_observed_boundaries,
)

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


@dataclass(frozen=True)
class Observation:
    """Positions seen in one activation, and what is known of all of it.

    Args:
        position: (num_sampled_blocks * block_size,) float32, bin units 0..num_bins;
            whole blocks one after the other.
        block_size: values per block; smaller than asked when the activation is.
        num_values: values in the activation.
        at_minimum: fraction of all values equal to their block's minimum.
        at_maximum: fraction equal to their block's maximum and above its minimum.
        zero_fraction: fraction of all values that are exactly 0.
    """

    position: np.ndarray
    block_size: int
    num_values: int
    at_minimum: float
    at_maximum: float
    zero_fraction: float


def observe_blocks(
    activation: Tensor,  # (num_nodes, num_features) float
    block_size: int,
    bits: int,
    *,
    sample_blocks: int,
    generator: torch.Generator,  # on the CPU; the same seed takes the same blocks
) -> Observation:
    """Normalize an activation block by block and keep a random sample of blocks.

    Minimum and maximum are the exact float32 ones, not the rounded pair a compressed
    activation keeps: what is asked is the law of the values, not of a storage format.
    A constant block lies at position 0. A partial last block counts in the fractions
    but is not sampled; an activation smaller than a block is one block of its own size.
    """
    values = activation.detach().float().flatten()
    num_values = values.numel()
    if num_values == 0:
        raise ValueError(
            "cannot observe an empty activation; expected at least 1 value"
        )
    if block_size < 1 or sample_blocks < 1:
        raise ValueError(
            "block_size and sample_blocks must be at least 1, "
            f"got {block_size} and {sample_blocks}"
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError("cannot observe an activation that holds NaN or infinity")
    block_size = min(block_size, num_values)
    num_whole = num_values // block_size
    whole = values[: num_whole * block_size].view(num_whole, block_size)
    pieces = [whole]
    if num_whole * block_size < num_values:
        pieces.append(values[num_whole * block_size :][None])
    at_minimum = at_maximum = 0
    for piece in pieces:
        low, high = torch.aminmax(piece, dim=1, keepdim=True)
        at_minimum += int((piece == low).sum())
        at_maximum += int(((piece == high) & (high > low)).sum())

    chosen = torch.randperm(num_whole, generator=generator)[:sample_blocks]
    sample = whole[chosen.sort().values.to(whole.device)].double()
    low, high = torch.aminmax(sample, dim=1, keepdim=True)
    width = torch.where(high > low, high - low, 1.0)
    num_bins = 2**bits - 1
    position = ((sample - low) / width * num_bins).float()
    return Observation(
        position=position.flatten().cpu().numpy(),
        block_size=block_size,
        num_values=num_values,
        at_minimum=at_minimum / num_values,
        at_maximum=at_maximum / num_values,
        zero_fraction=int((values == 0).sum()) / num_values,
    )


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
    middles = (np.arange(laws.NUM_BINS) + 0.5) * (num_bins / laws.NUM_BINS)
    coords = {name: capture[name].values for name in _SAMPLE} | {
        "law": np.array(laws.LAWS),
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
    observed = laws.count_positions(sample, block_size, num_bins)
    fits = laws.fit_laws(observed)
    has_interior = bool(observed.interior.any())
    p_values = laws.interior_p_values(observed, fits, rng, replicates)
    by_law: dict[str, list[np.ndarray | float]] = {
        name: [np.full(_size_of(dims), np.nan) for _ in laws.LAWS]
        for name, (dims, _, _) in VARIABLES.items()
        if "law" in dims
    }
    for name, law in fits.items():
        row = laws.LAWS.index(name)
        cells = np.diff(law.cumulative)
        by_law["jensen_shannon"][row] = laws.jensen_shannon(observed, law)
        by_law["kolmogorov_smirnov"][row] = laws.kolmogorov_smirnov(observed, law)
        if has_interior:
            by_law["ks_interior"][row] = laws.interior_distance(observed, law)
        by_law["ks_p_value"][row] = p_values[name]
        by_law["fitted_mean"][row] = law.mean
        by_law["fitted_std"][row] = law.std
        by_law["histogram_fitted"][row] = laws.observed_bins(cells)
        by_law["mass_at_minimum_fitted"][row] = law.at_minimum
        by_law["mass_at_maximum_fitted"][row] = law.at_maximum
        by_law["mass_outside_fitted"][row] = law.below + law.above
        by_law["quantile_fitted"][row] = law.quantile(PROBABILITIES)
    values: dict[str, np.ndarray | float] = {
        name: np.stack(rows) for name, rows in by_law.items()
    }
    return values | {
        "jensen_shannon_noise": laws.jensen_shannon_noise(observed),
        "histogram": laws.observed_bins(observed.cells),
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
    cells, _ = np.histogram(inside, laws.NUM_CELLS, (0, num_bins))
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
    sizes = {"bin": laws.NUM_BINS, "probability": len(PROBABILITIES)}
    return tuple(sizes[dim] for dim in dims if dim != "law")
