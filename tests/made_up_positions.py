"""Positions drawn from a known law, in whole blocks, as captures hold them."""

import numpy as np
import scipy.stats

from pipeline_src.laws import cells
from pipeline_src.laws.clipped_normal import ClippedNormal

NUM_BINS = 3
NARROW = (1.4, 0.3)  # mean and std of a normal law that stays within 0..3
SKEWED = (0.9, 0.9)  # mean and std of a normal law that [0, 3] cuts
# A correct program fails a test of chance once in so many runs, were seeds not fixed.
RARE = 1e-6


def draw(law: str, size, rng, block_size: int) -> np.ndarray:
    """Values of a law, bin units; of the clipped normal with its ends."""
    if law == "uniform":
        return rng.uniform(0, NUM_BINS, size)
    if law == "normal":
        return rng.normal(*NARROW, size)
    if law == "truncated_normal":
        mean, std = SKEWED
        cut = scipy.stats.truncnorm(-mean / std, (NUM_BINS - mean) / std, mean, std)
        return cut.rvs(size, random_state=rng)
    clipped = ClippedNormal(block_size, bits=2)
    return np.clip(rng.normal(clipped.mean, clipped.std, size), 0, NUM_BINS)


def draw_blocks(
    law: str, num_blocks: int, block_size: int, rng, repeat=1
) -> np.ndarray:
    """Blocks of one minimum, one maximum and values between, each `repeat` times."""
    inner = []
    count = num_blocks * (block_size - 2) // repeat
    while len(inner) < count:
        values = draw(law, 2 * count, rng, block_size)
        inner = values[(values > 0) & (values < NUM_BINS)][:count]
    inner = np.repeat(inner, repeat).reshape(num_blocks, block_size - 2)
    ends = np.tile([0.0, NUM_BINS], (num_blocks, 1))
    return np.hstack([ends, inner]).astype(np.float32).ravel()


def count(sample: np.ndarray, block_size=16) -> cells.ObservedPositions:
    return cells.count_positions(sample.astype(np.float32), block_size, NUM_BINS)
