"""Solved boundaries: known values, independent solvers, and laws of a minimum."""

import itertools

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from scipy.special import ndtr, ndtri

from pipeline_src.laws import solver
from pipeline_src.laws.boundary_table import boundary_table
from pipeline_src.laws.clipped_normal import (
    PACKABLE_BITS,
    ClippedNormal,
    even_boundaries,
    observed_rounding_variance,
    rounding_variance,
)
from pipeline_src.laws.solved_boundaries import read_boundaries
from pipeline_src.laws.solver import (
    solve_boundaries,
    solve_observed_boundaries,
)
from pipeline_src.records import datasets

# The closed form cancels most at 8 bits, to 6e-12 of V against 40 digits.
CLOSED_FORM_ERROR = 1e-10

# (block size, alpha, reduction of the rounding variance in percent), INT2: found with
# quadrature and Nelder-Mead, on both inner edges.
KNOWN = [
    (4, 1.0109, 0.07),
    (8, 1.0300, 0.61),
    (16, 1.0500, 1.84),
    (32, 1.0689, 3.78),
    (63, 1.0858, 6.26),
    (64, 1.0861, 6.33),
    (128, 1.1017, 9.34),
    (256, 1.1156, 12.66),
    (512, 1.1281, 16.16),
    (1024, 1.1393, 19.71),
    (2048, 1.1495, 23.22),
]


def solve_one(bits: int, block_size: int) -> np.ndarray:
    return solve_boundaries(bits, np.array([block_size]))[0]


@pytest.fixture(scope="module")
def table():
    return boundary_table()


@pytest.mark.parametrize(("block_size", "alpha", "reduction"), KNOWN)
def test_int2_reproduces_the_known_optimum(block_size, alpha, reduction):
    law = ClippedNormal(block_size, bits=2)
    solved = solve_one(2, block_size)
    even = rounding_variance(even_boundaries(2), law)
    assert round(solved[1], 4) == alpha
    assert round(100 * (1 - rounding_variance(solved, law) / even), 2) == reduction


@pytest.mark.parametrize("bits", PACKABLE_BITS)
@pytest.mark.parametrize("block_size", [4, 63, 1024])
def test_each_end_of_the_clipped_normal_holds_one_value_per_block(bits, block_size):
    law = ClippedNormal(block_size, bits)
    normal = scipy.stats.norm(law.mean, law.std)
    assert normal.cdf(0) == pytest.approx(1 / block_size, rel=1e-12)
    assert normal.sf(law.num_bins) == pytest.approx(1 / block_size, rel=1e-12)
    assert law.quantile(np.array([0.5 / block_size, 1.0])).tolist() == [0, law.num_bins]


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("block_size", [4, 16, 1024])
def test_closed_form_equals_quadrature(bits, block_size):
    law = ClippedNormal(block_size, bits)
    density = scipy.stats.norm(law.mean, law.std).pdf
    rng = np.random.default_rng(bits)
    uneven = even_boundaries(bits)
    uneven[1:-1] += rng.uniform(-0.4, 0.4, law.num_bins - 1)
    for edges in (even_boundaries(bits), uneven):
        pieces = [
            scipy.integrate.quad(
                lambda x, a, c: (x - a) * (c - x) * density(x), a, c, args=(a, c)
            )
            for a, c in itertools.pairwise(edges)
        ]
        value = sum(piece[0] for piece in pieces)
        error = sum(piece[1] for piece in pieces)
        difference = abs(rounding_variance(edges, law) - value)
        assert difference <= error + CLOSED_FORM_ERROR * value


@pytest.mark.parametrize(
    ("bits", "block_size"), [(2, 4), (2, 63), (2, 4096), (4, 4), (4, 1024), (4, 4096)]
)
def test_optimum_agrees_with_coordinate_descent(bits, block_size):
    """No symmetry, no derivatives: each edge in turn where F is its bins' mean of F.

    F is the cumulative distribution, and its mean over the two bins beside an edge
    comes from its integral x F + the density: the condition dV/db = 0 by parts.
    """
    law = ClippedNormal(block_size, bits)
    z = (even_boundaries(bits) - law.mean) / law.std
    for _ in range(1000):  # an error shrinks by cos(pi / num_bins)**2, 0.96, in each
        for start in (1, 2):
            a, c = z[start - 1 : -2 : 2], z[start + 1 :: 2]
            area = c * ndtr(c) - a * ndtr(a)
            area += (np.exp(-(c**2) / 2) - np.exp(-(a**2) / 2)) / np.sqrt(2 * np.pi)
            z[start:-1:2] = ndtri(area / (c - a))
    found = law.mean + law.std * z
    assert np.abs(solve_one(bits, block_size) - found).max() < 1e-10


@pytest.mark.parametrize("block_size", [4, 64, 4096])
def test_no_pair_of_inner_edges_is_better(block_size):
    """The minimum is the global one: all pairs of a grid over [0, 3]."""
    law = ClippedNormal(block_size, bits=2)
    first, last = (edge.ravel() for edge in np.meshgrid(*[np.linspace(0, 3, 301)] * 2))
    pairs = np.stack([np.zeros_like(first), first, last, np.full_like(first, 3)], 1)
    pairs = pairs[first < last]
    least = rounding_variance(pairs, law).min()
    assert rounding_variance(solve_one(2, block_size), law) <= least


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block_size", [4, 16, 1024])
def test_any_other_boundaries_have_more_variance(bits, block_size):
    law = ClippedNormal(block_size, bits)
    solved = solve_one(bits, block_size)
    least = rounding_variance(solved, law)
    rng = np.random.default_rng(block_size)
    narrowest = np.diff(solved).min()
    for size in (0.45, 0.1, 0.01):
        other = np.tile(solved, (50, 1))
        other[:, 1:-1] += rng.uniform(-size, size, other[:, 1:-1].shape) * narrowest
        assert np.all(rounding_variance(other, law) > least)


@pytest.mark.parametrize("bits", PACKABLE_BITS)
def test_boundaries_are_symmetric_increasing_and_start_at_zero(bits):
    solved = solve_boundaries(bits, np.arange(3, 4097))
    num_bins = 2**bits - 1
    assert np.all(solved[:, 0] == 0)
    assert np.all(solved[:, -1] == num_bins)
    assert np.all(np.diff(solved, axis=1) > 0)
    asymmetry = np.abs(solved + solved[:, ::-1] - num_bins)
    assert asymmetry.max() <= num_bins * np.finfo(float).eps


def test_solving_many_block_sizes_equals_solving_each():
    sizes = np.array([4, 50, 4096])
    together = solve_boundaries(4, sizes)
    alone = np.stack([solve_one(4, size) for size in sizes])
    assert np.abs(together - alone).max() < 1e-12


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_blocks_far_beyond_the_table_converge(bits):
    solved = solve_boundaries(bits, np.array([3, 10**6, 10**9]))
    assert np.all(np.diff(solved, axis=1) > 0)
    assert solved[0, 1] < solved[1, 1] < solved[2, 1]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_poor_start_leads_to_the_same_boundaries(bits, monkeypatch):
    """Edges crowded at both ends: full Newton steps would cross and end elsewhere."""
    expected = solve_one(bits, 1024)

    def crowded(law):
        u = np.linspace(-1, 1, law.num_bins + 1)
        return law.num_bins * (np.sign(u) * np.abs(u) ** 0.3 + 1)[:, None] / 2

    monkeypatch.setattr(solver, "_compander", crowded)
    assert np.abs(solve_one(bits, 1024) - expected).max() < 1e-12


def test_one_bit_has_nothing_to_solve():
    assert solve_one(1, 64).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("bits", [2, 4])
def test_closed_form_is_the_variance_of_stochastic_rounding(bits):
    """The squared error of n rounded draws is within 5 standard errors of V."""
    law = ClippedNormal(64, bits)
    rng = np.random.default_rng(0)
    x = np.clip(rng.normal(law.mean, law.std, 200_000), 0, law.num_bins)
    for edges in (even_boundaries(bits), solve_one(bits, 64)):
        lower = np.searchsorted(edges[1:-1], x, side="right")
        share = (x - edges[lower]) / (edges[lower + 1] - edges[lower])
        error = edges[lower + (rng.uniform(size=x.shape) < share)] - x
        squared = error**2
        standard_error = squared.std() / len(x) ** 0.5
        expected = rounding_variance(edges, law)
        assert abs(squared.mean() - expected) < 5 * standard_error
        assert abs(error.mean()) < 5 * error.std() / len(x) ** 0.5
        exact = observed_rounding_variance(edges, x)
        # Given the positions nothing is random but the positions: a smaller error.
        assert abs(exact - expected) < 5 * standard_error


@pytest.mark.parametrize("bits", [2, 4])
def test_observed_boundaries_of_the_law_are_those_of_the_law(bits):
    """To within a cell: a histogram knows the density no better."""
    law = ClippedNormal(64, bits)
    edges = np.linspace(0, law.num_bins, 1025)
    mass = np.diff(scipy.stats.norm(law.mean, law.std).cdf(edges))
    found = solve_observed_boundaries(bits, mass)
    assert np.abs(found - solve_one(bits, 64)).max() < edges[1]


def test_observed_boundaries_of_uniform_positions_are_even():
    found = solve_observed_boundaries(4, np.ones(1024))
    assert np.abs(found - even_boundaries(4)).max() < 1e-12


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_sweeps_never_raise_the_observed_variance(bits):
    rng = np.random.default_rng(1)
    num_bins = 2**bits - 1
    position = num_bins * rng.beta(0.7, 3, 50_000)
    mass, edges = np.histogram(position, 1024, (0, num_bins))
    # Spread evenly within cells, so that the histogram is the whole truth.
    spread = np.repeat(edges[:-1], mass) + edges[1] * rng.uniform(size=mass.sum())
    variance = [
        observed_rounding_variance(
            solve_observed_boundaries(bits, mass, sweeps), spread
        )
        for sweeps in (0, 1, 10, 200)
    ]
    assert variance == sorted(variance, reverse=True)
    assert variance[-1] < observed_rounding_variance(even_boundaries(bits), spread)


def test_observed_boundaries_of_nothing_are_even():
    assert solve_observed_boundaries(2, np.zeros(8)).tolist() == [0, 1, 2, 3]


def test_unknown_bits_are_refused():
    with pytest.raises(ValueError, match=r"bits must be one of \(1, 2, 4, 8\), got 3"):
        solve_boundaries(3, np.array([16]))


def test_too_small_blocks_are_refused():
    with pytest.raises(ValueError, match=r"at least 3 .*, got 2; use even boundaries"):
        solve_boundaries(2, np.array([16, 2]))


def test_failure_to_converge_is_an_error(monkeypatch):
    monkeypatch.setattr(solver, "_MAX_STEPS", 1)
    with pytest.raises(RuntimeError, match="did not converge in 1 steps"):
        solve_one(8, 16)


def test_table_holds_the_solver_s_answers(table):
    sizes = {"bits": 4, "block_size": 4093, "level": 256}
    assert table.sizes == sizes
    for bits in PACKABLE_BITS:
        row = table.sel(bits=bits, block_size=63)
        kept = row["boundaries"].values
        # Kept to 2**-20 bins.
        assert np.abs(kept[: 2**bits] - solve_one(bits, 63)).max() <= 2**-21
        assert np.isnan(kept[2**bits :]).all()
        assert np.isnan(row["alpha"]) if bits == 1 else row["alpha"] == kept[1]
        even = rounding_variance(even_boundaries(bits), ClippedNormal(63, bits))
        assert row["rounding_variance_even"] == pytest.approx(even, rel=1e-12)
    for block_size, alpha, reduction in KNOWN:
        row = table.sel(bits=2, block_size=block_size)
        assert round(float(row["alpha"]), 4) == alpha
        assert round(100 * float(row["variance_reduction"]), 2) == reduction


def test_longer_blocks_gain_more(table):
    """The longer the block, the narrower the law, the less even its best bins."""
    several = table.sel(bits=[2, 4, 8])
    assert (several["variance_reduction"].diff("block_size") > 0).all()
    assert (several["alpha"].diff("block_size") > -(2**-20)).all()
    assert (table["variance_reduction"].sel(bits=1) == 0).all()


def test_table_survives_a_file_of_moderate_size(table, tmp_path):
    path = tmp_path / "boundaries.nc"
    datasets.write_dataset(table, path)
    assert path.stat().st_size < 3e6
    read = datasets.read_dataset(path)
    assert read.identical(table)
    for name in read.variables:
        assert read[name].attrs["units"], name
        assert read[name].attrs["long_name"], name
    boundaries_of = read_boundaries(path)
    solved = np.array(boundaries_of(2, 1024))
    assert np.abs(solved - solve_one(2, 1024)).max() <= 2**-21


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_best_boundaries_of_a_lattice_span_all_bins_and_save_less_than_everything(bits):
    """Values of integers, as pixels are: empty cells at both ends of the histogram."""
    num_bins = 2**bits - 1
    lattice = np.linspace(0, num_bins, 17)
    position = lattice[np.random.default_rng(0).integers(0, 17, 4000)]
    inside = position[(position > 0) & (position < num_bins)]
    mass, _ = np.histogram(inside, 4096, (0, num_bins))
    best = solve_observed_boundaries(bits, mass)
    assert best[0] == 0
    assert best[-1] == num_bins
    assert np.all(np.diff(best) >= 0)
    assert observed_rounding_variance(best, position) >= 0
