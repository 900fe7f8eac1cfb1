"""Solved boundaries, as training asks for them: by bits and block size.

They come from the solver's file alone, so that editing the solver's code trains nothing
again that rounds evenly.
"""

from collections.abc import Callable

import numpy as np

from pipeline_src.records.datasets import FilePath, read_dataset


def read_boundaries(
    path: FilePath | None,
) -> Callable[[int, int, bool], tuple[float, ...]] | None:
    """Read solved boundaries; return a function of bits, block size, and sidedness.

    Without a file, as where every method rounds evenly, there is nothing to return. The
    function returns boundaries in bin units: 2**bits of them from 0 to 2**bits - 1
    or, if sided, those of one side of ReLU's threshold (quant/rectified.py). A block
    size outside the table takes the nearest one in it; below 4 values per block a block
    holds little but its two extremes, and the boundaries are even.

    Raises:
        ValueError: (from the function) if bits are not in the table.
    """
    if not path:
        return None
    table = read_dataset(path)
    block_sizes = table["block_size"].values
    edges = {
        (int(bits), sided): table[name].sel(bits=bits).values
        for sided, name in ((False, "boundaries"), (True, "sided_boundaries"))
        for bits in table["bits"].values
    }
    known = {key: rows for key, rows in edges.items() if np.isfinite(rows).any()}

    def boundaries_of(bits: int, block_size: int, sided: bool) -> tuple[float, ...]:
        if (bits, sided) not in known:
            tabulated = [width for width, side in known if side == sided]
            raise ValueError(f"bits must be one of {tabulated}, got {bits}")
        rows = known[bits, sided]
        row = rows[int(np.abs(block_sizes - block_size).argmin())]
        row = row[np.isfinite(row)]
        if block_size < 4:
            return tuple(float(level) for level in range(len(row)))
        return tuple(float(boundary) for boundary in row)

    return boundaries_of
