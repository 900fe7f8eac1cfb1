"""Solved boundaries, as training asks for them: by bits and block size.

They come from the solver's file alone, so that editing the solver's code trains nothing
again that rounds evenly.
"""

from collections.abc import Callable

import numpy as np

from pipeline_src.records.datasets import FilePath, read_dataset


def read_boundaries(
    path: FilePath | None,
) -> Callable[[int, int], tuple[float, ...]] | None:
    """Read solved boundaries; return a function of bits and block size.

    Without a file, as where every method rounds evenly, there is nothing to return. The
    function returns boundaries in bin units, 2**bits of them from 0 to 2**bits - 1. A
    block size outside the table takes the nearest one in it; below 4 values per block a
    block holds little but its two extremes, and the boundaries are even.

    Raises:
        ValueError: (from the function) if bits are not in the table.
    """
    if not path:
        return None
    table = read_dataset(path)
    block_sizes = table["block_size"].values
    known = {
        int(bits): table["boundaries"].sel(bits=bits).values
        for bits in table["bits"].values
    }

    def boundaries_of(bits: int, block_size: int) -> tuple[float, ...]:
        if bits not in known:
            raise ValueError(f"bits must be one of {list(known)}, got {bits}")
        rows = known[bits]
        row = rows[int(np.abs(block_sizes - block_size).argmin())]
        row = row[np.isfinite(row)]
        if block_size < 4:
            return tuple(float(level) for level in range(len(row)))
        return tuple(float(boundary) for boundary in row)

    return boundaries_of
