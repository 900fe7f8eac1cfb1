"""Positions of a sample of blocks, counted: mass on the ends, cells in between.

Min-max normalization makes positions a mixture: one value of each block lies exactly on
0 and one exactly on num_bins (more of them after a ReLU), the others lie in between. So
a distribution here is three things: mass on 0, mass on num_bins, and an interior,
counted in 1,024 even cells. The interior is kept by cluster of blocks, because blocks
are what can be resampled: positions of one block share its minimum and maximum.
"""

from dataclasses import dataclass

import numpy as np

NUM_CELLS = 1024
NUM_BINS = 64  # of the histogram; must divide NUM_CELLS
# Blocks are resampled in at most so many clusters of neighbours. It bounds the cost;
# clusters of independent blocks are as independent.
MAX_CLUSTERS = 128

EDGES = np.linspace(0, 1, NUM_CELLS + 1)  # of the cells, as fractions of num_bins
MIDDLES = (EDGES[:-1] + EDGES[1:]) / 2


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


def observed_bins(cells: np.ndarray) -> np.ndarray:
    """Sum cells (..., NUM_CELLS) to the bins of the histogram (..., NUM_BINS)."""
    return cells.reshape(*cells.shape[:-1], NUM_BINS, -1).sum(axis=-1)


def cumulate(cells: np.ndarray) -> np.ndarray:
    """Cumulative distribution at the cell edges, given the interior."""
    summed = np.zeros((*cells.shape[:-1], NUM_CELLS + 1))
    np.cumsum(cells, axis=-1, out=summed[..., 1:])
    return summed / summed[..., -1:]


def moments(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of (..., NUM_CELLS), as fractions of num_bins."""
    share = cells / cells.sum(axis=-1, keepdims=True)
    mean = share @ MIDDLES
    # The spread within a cell too: a single cell in use has no spread otherwise.
    square = share @ MIDDLES**2 - mean**2 + 1 / (12 * NUM_CELLS**2)
    return mean, np.sqrt(square)
