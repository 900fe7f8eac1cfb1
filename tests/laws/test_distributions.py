"""Which law captured positions follow, and what boundaries built on one save there."""

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from made_up_positions import NUM_BINS, RARE, draw, draw_blocks

from pipeline_src.laws import cells
from pipeline_src.laws.boundary_table import boundary_table
from pipeline_src.laws.clipped_normal import ClippedNormal, observed_rounding_variance
from pipeline_src.laws.distributions import VARIABLES, fit_distributions
from pipeline_src.laws.fits import LAWS
from pipeline_src.records import datasets
from pipeline_src.training.observations import observe_blocks


@pytest.fixture(scope="module")
def table():
    return boundary_table(np.array([4, 16, 64, 1024]))


def capture_of(*samples: np.ndarray, block_size=16, bits=2) -> xr.Dataset:
    """Samples as the tensors of a capture with one epoch, not projected."""
    length = max(len(sample) for sample in samples)
    position = np.full((len(samples), 1, 1, length), np.nan, dtype=np.float32)
    for row, sample in enumerate(samples):
        position[row, 0, 0, : len(sample)] = sample
    dims = ("tensor", "epoch", "projected")
    capture = xr.Dataset(
        {
            "position": ((*dims, "sample"), position),
            "block_size": (
                ("tensor", "projected"),
                np.full((len(samples), 1), block_size),
            ),
        },
        coords={
            "tensor": [f"layer{row + 1}.input" for row in range(len(samples))],
            "epoch": [1],
            "projected": [0],
        },
        attrs={"bits": bits, "spec": "{}"},
    )
    for name in capture.variables:
        capture[name].attrs = {"units": "1", "long_name": str(name)}
    return capture


def fit_one(sample: np.ndarray, table: xr.Dataset, **settings) -> xr.Dataset:
    fitted = fit_distributions(capture_of(sample, **settings), table)
    return fitted.isel(tensor=0, epoch=0, projected=0)


# Laws that hold the drawn one as a special case, or so nearly that it cannot be told.
TRUE_LAWS = {
    "uniform": {"uniform", "truncated_normal"},
    "normal": {"normal", "truncated_normal"},
    "truncated_normal": {"truncated_normal"},
    "clipped_normal": {"clipped_normal"},
}


@pytest.mark.parametrize("law", LAWS)
def test_the_right_law_is_as_close_as_chance_allows_and_others_are_not(law, table, rng):
    """Under the right law 8 n ln 2 times the divergence is chi-squared, or less."""
    sample = draw(law, 65_536, rng, 16)
    fitted = fit_one(sample, table)
    num_cells = cells.NUM_BINS + 4  # both ends and both outsides
    bound = scipy.stats.chi2.isf(RARE, num_cells - 1) / (8 * len(sample) * np.log(2))
    divergence = fitted["jensen_shannon"].to_series()
    near = set(divergence.index[divergence <= bound])
    assert near == TRUE_LAWS[law]
    # Kolmogorov's own bound: fitted parameters only bring the law closer.
    largest = scipy.stats.kstwobign.isf(RARE) / len(sample) ** 0.5
    for right in TRUE_LAWS[law]:
        assert fitted["kolmogorov_smirnov"].sel(law=right) <= largest


def test_a_p_value_needs_eight_blocks(table, rng):
    few = fit_one(draw_blocks("uniform", 7, 16, rng), table)
    enough = fit_one(draw_blocks("uniform", 8, 16, rng), table)
    assert few["ks_p_value"].isnull().all()
    assert enough["ks_p_value"].notnull().all()
    assert few["ks_interior"].notnull().all()


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("block_size", [16, 1024])
def test_achieved_reduction_is_the_predicted_one_under_the_law(
    bits, block_size, table, rng
):
    """Within 5 standard errors of a ratio of means."""
    law = ClippedNormal(block_size, bits)
    sample = np.clip(rng.normal(law.mean, law.std, 2**17), 0, law.num_bins)
    fitted = fit_one(sample, table, bits=bits, block_size=block_size)
    solved = table["boundaries"].sel(bits=bits, block_size=block_size)
    solved = solved.values[: 2**bits]
    even = np.arange(2.0**bits)
    one_by_one = [
        [
            observed_rounding_variance(edges, sample[at : at + 128])
            for edges in (solved, even)
        ]
        for at in range(0, len(sample), 128)
    ]
    saved, base = np.transpose(one_by_one)
    ratio = saved.mean() / base.mean()
    standard_error = (saved - ratio * base).std() / len(base) ** 0.5 / base.mean()
    predicted = float(fitted["variance_reduction_predicted"])
    achieved = float(fitted["variance_reduction_achieved"])
    assert predicted > 0
    assert abs(achieved - predicted) < 5 * standard_error
    assert (
        achieved <= fitted["variance_reduction_best"] < achieved + 10 * standard_error
    )


def test_one_sided_activations_lose_by_the_clipped_normal(table):
    """After a ReLU half of the values lie in the lowest bin, which was widened."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4_000, 64, generator=generator).relu()
    seen = observe_blocks(x, 1024, 2, sample_blocks=64, generator=generator)
    fitted = fit_one(seen.position, table, block_size=1024)
    assert fitted["variance_reduction_predicted"] > 0.19
    assert fitted["variance_reduction_achieved"] < -0.05
    assert fitted["variance_reduction_best"] > 0.05
    # About half of the values are zeros, which are block minima.
    assert abs(seen.at_minimum - 0.5) < 5 * 0.5 / x.numel() ** 0.5
    assert seen.zero_fraction == seen.at_minimum


def test_best_boundaries_are_never_worse_than_known_ones(table, rng):
    """Nearly all positions on even edges: a histogram cannot place edges as exactly."""
    sample = np.repeat([1.0, 2.0], 8_000)
    sample[::100] = rng.uniform(0, 3, 160)
    fitted = fit_one(sample, table)
    assert fitted["variance_reduction_achieved"] < 0
    assert fitted["variance_reduction_best"] == 0


def test_one_bit_and_tiny_blocks_save_nothing(rng):
    sample = rng.uniform(0, 1, 64)
    fitted = fit_one(sample, boundary_table(np.array([4, 16])), bits=1)
    assert fitted["variance_reduction_predicted"] == 0
    assert fitted["variance_reduction_achieved"] == 0
    tiny = fit_one(3 * sample, boundary_table(np.array([4, 16])), block_size=2)
    assert tiny["variance_reduction_predicted"] == 0
    assert tiny["variance_reduction_achieved"] == 0
    assert tiny["jensen_shannon"].sel(law="clipped_normal").isnull()


def test_constant_activations_leave_nan_where_nothing_can_be_said(table):
    fitted = fit_one(np.zeros(16 * 20), table)
    assert fitted["mass_at_minimum"] == 1
    assert fitted["jensen_shannon"].sel(law="uniform") == 1
    for name in ("ks_p_value", "ks_interior"):
        assert fitted[name].isnull().all()
    assert np.isnan(fitted["variance_reduction_achieved"])
    assert fitted["rounding_variance_even"] == 0


def test_shorter_and_missing_samples_do_not_disturb_their_neighbours(table, rng):
    long, short = (
        draw_blocks("normal", 64, 16, rng),
        draw_blocks("uniform", 32, 16, rng),
    )
    capture = capture_of(long, short, np.empty(0))
    together = fit_distributions(capture, table).drop_vars("ks_p_value")
    for row, sample in enumerate((long, short)):
        alone = fit_distributions(capture_of(sample), table).drop_vars("ks_p_value")
        alone = alone.assign_coords(tensor=together["tensor"][[row]])
        xr.testing.assert_equal(together.isel(tensor=[row]), alone)
    for name in VARIABLES:
        if name in together:
            assert together[name].isel(tensor=2).isnull().all(), name


def test_distributions_survive_a_file(table, tmp_path, rng):
    capture = capture_of(draw_blocks("normal", 64, 16, rng))
    fitted = fit_distributions(capture, table)
    path = tmp_path / "distributions.nc"
    datasets.write_dataset(fitted, path)
    assert datasets.read_dataset(path).identical(fitted)
    assert fitted.attrs == capture.attrs
    for name in fitted.variables:
        assert fitted[name].attrs["units"], name
        assert fitted[name].attrs["long_name"], name
    assert fit_distributions(capture, table).identical(fitted)


def test_histograms_with_the_ends_add_up_to_one(table, rng):
    fitted = fit_one(draw_blocks("normal", 64, 16, rng), table)
    ends = fitted["mass_at_minimum"] + fitted["mass_at_maximum"]
    assert float(fitted["histogram"].sum() + ends) == pytest.approx(1, abs=1e-14)
    by_law = fitted["histogram_fitted"].sum("bin")
    for name in ("mass_at_minimum", "mass_at_maximum", "mass_outside"):
        by_law = by_law + fitted[f"{name}_fitted"]
    assert np.abs(by_law - 1).max() < 1e-14
    assert fitted["mass_at_minimum_fitted"].sel(law="clipped_normal") == 1 / 16


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (np.full(16, 3.5), r"must lie in \[0, 3\], got 3.5"),
        (np.ones(17), "whole blocks of 16 positions, got 17"),
    ],
)
def test_a_capture_in_the_wrong_form_is_refused(sample, message, table):
    with pytest.raises(ValueError, match=message) as error:
        fit_distributions(capture_of(sample), table)
    assert "layer1.input" in str(error.value)


def test_values_in_a_single_cell_have_a_fit_within_it(table):
    block = np.array([0, NUM_BINS] + [1.0] * 14)
    fitted = fit_one(np.tile(block, 20), table)
    cell = NUM_BINS / cells.NUM_CELLS
    for law in ("normal", "truncated_normal"):
        assert abs(fitted["fitted_mean"].sel(law=law) - 1) < cell
        assert fitted["fitted_std"].sel(law=law) < cell
