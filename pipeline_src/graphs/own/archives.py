"""NumPy archives (`.npz`) of a graph's arrays, under the names of arrays.py."""

from pathlib import Path

import numpy as np

from pipeline_src.graphs.files import DAMAGE, refuse_large_archive
from pipeline_src.graphs.own.arrays import READ, Arrays


def read_archive(path: str | Path) -> Arrays:
    """Arrays of an `.npz` file; of those that are not read, names and empty arrays.

    Raises:
        ValueError: if the file is damaged, or an array that is read holds objects.
        OSError: if it cannot be opened.
    """
    with Path(path).open("rb") as file:  # a missing file is no damaged one
        file.read(1)
    try:
        refuse_large_archive(path)
        with np.load(path, allow_pickle=False) as archive:
            return {
                name: archive[name] if name in READ else np.empty(0)
                for name in archive.files
            }
    except DAMAGE as error:
        raise ValueError(
            f"expected a sound file of numpy.savez with arrays of numbers, got: {error}"
        ) from error
