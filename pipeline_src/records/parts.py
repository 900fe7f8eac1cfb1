"""Finished parts of an unfinished record, so that a killed job goes on where it was.

A job keeps them in a hidden folder beside its record,

    <folder>/.partial/<name of the record>/<key>/seed3.nc

whose key changes with everything that changes the record. Once the record is there, all
parts of it go, those of other keys too: what an edited configuration left behind.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xarray as xr

from pipeline_src.records.datasets import read_dataset

FOLDER = ".partial"

log = logging.getLogger(__name__)


@contextmanager
def parts_folder(path: Path, key: str) -> Iterator[Path]:
    """The folder for parts of the record `path`; removed when the block succeeds.

    Args:
        path: of the record, which the block writes.
        key: changes with everything that changes the record.
    """
    parts = path.parent / FOLDER / path.stem
    yield parts / key
    # Nobody needs them now, and failing to tidy up must not fail what succeeded.
    shutil.rmtree(parts, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: other jobs are at work
        parts.parent.rmdir()


def read_part(path: Path | None) -> xr.Dataset | None:
    """A part that was kept, or None; a damaged one counts as missing."""
    if path is None or not path.exists():
        return None
    try:
        return read_dataset(path)
    except OSError as error:
        log.warning("%s is made again: %s", path, error)
        return None
