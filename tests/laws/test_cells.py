"""Counted positions account for every value, block by block."""

import numpy as np
import pytest
from made_up_positions import NUM_BINS, draw_blocks

from pipeline_src.laws import cells


@pytest.mark.parametrize("num_blocks", [1, 100, 300], ids=["one", "few", "clustered"])
def test_counts_are_those_of_a_loop_over_blocks(num_blocks, rng):
    """Each cluster holds neighbours; beyond 128 blocks they share clusters evenly."""
    block_size = 8
    sample = draw_blocks("uniform", num_blocks, block_size, rng)
    observed = cells.count_positions(sample, block_size, NUM_BINS)
    num_clusters = min(num_blocks, cells.MAX_CLUSTERS)
    expected = np.zeros((num_clusters, cells.NUM_CELLS))
    for at, block in enumerate(sample.reshape(num_blocks, block_size)):
        for value in block:
            if 0 < value < NUM_BINS:
                cell = int(float(value) / NUM_BINS * cells.NUM_CELLS)
                expected[at * num_clusters // num_blocks, cell] += 1
    np.testing.assert_array_equal(observed.interior, expected)
    assert observed.at_minimum == observed.at_maximum == num_blocks
    assert observed.num_values == len(sample)
    shares = observed.cells.sum() + 2 * num_blocks / len(sample)
    assert shares == pytest.approx(1, abs=1e-12)


def test_bins_and_moments_are_those_of_the_cells(rng):
    """Mean exactly; the variance but for the spread within a cell, which is added."""
    counts = rng.integers(0, 5, cells.NUM_CELLS).astype(float)
    assert cells.observed_bins(counts).sum() == counts.sum()
    assert cells.observed_bins(counts)[0] == counts[:16].sum()
    values = np.repeat(cells.MIDDLES, counts.astype(int))
    mean, std = cells.moments(counts)
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    within = 1 / (12 * cells.NUM_CELLS**2)
    assert std**2 == pytest.approx(values.var() + within, rel=1e-9)
    cumulative = cells.cumulate(counts)
    assert (cumulative[0], cumulative[-1]) == (0, 1)
    np.testing.assert_allclose(np.diff(cumulative), counts / counts.sum(), atol=1e-14)
