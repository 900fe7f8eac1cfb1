"""Solved boundaries, as training asks for them: by bits and block size.

They come from the solver's file alone, so that editing the solver's code trains nothing
again that rounds evenly.
"""

from collections.abc import Callable

import numpy as np

from pipeline_src.experiment.records import FilePath, read_dataset


def read_boundaries(path: FilePath) -> Callable[[int, int], tuple[float, ...]]:
    """Read solved boundaries and return a function from (bits, block size) to them.

    The function returns 2**bits boundaries in bin units, first 0 and last 2**bits - 1.
    A block size outside the table takes the nearest one in it; below 4 values per block
    a block holds little but its two extremes, and the boundaries are even.

    Raises:
        ValueError: (from the function) if bits are not in the table.
    """
    table = read_dataset(path)
    tabulated_bits = [int(bits) for bits in table["bits"].values]
    block_sizes = table["block_size"].values
    boundaries = table["boundaries"].transpose("bits", "block_size", "level").values

    def boundaries_of(bits: int, block_size: int) -> tuple[float, ...]:
        if bits not in tabulated_bits:
            raise ValueError(f"bits must be one of {tabulated_bits}, got {bits}")
        num_levels = 2**bits
        if block_size < 4:
            return tuple(float(level) for level in range(num_levels))
        nearest = int(np.abs(block_sizes - block_size).argmin())
        row = boundaries[tabulated_bits.index(bits), nearest, :num_levels]
        return tuple(float(boundary) for boundary in row)

    return boundaries_of
