"""Files written whole or not at all.

Content goes into a temporary file beside its target, is flushed to the disk and renamed
over the target. A process that is killed, a full disk or a power loss then leave the
older file or none, never half of one. A temporary file that a killed process left is
removed by the next attempt at the same target.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROBE = 1 << 16  # bytes; more than a full disk has left
REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "give yourself the right to write there",
    errno.EPERM: "give yourself the right to write there (lsattr shows locked files)",
}


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write bytes, or text as UTF-8, whole or not at all.

    Raises:
        OSError: as written_whole.
    """
    with written_whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write, which becomes `path` when the block ends without an error.

    Raises:
        OSError: if it cannot be written, naming the file and the remedy; an older file
            stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)  # the renaming itself
    except Exception as error:
        if (number := _reason(error, temporary)) is None:
            raise
        raise OSError(
            number,
            f"{path} cannot be written: {os.strerror(number)}. Nothing of it is left;"
            f" {REMEDIES[number]} and run snakemake again, which goes on with what is"
            " missing",
        ) from error
    finally:
        _remove(temporary)


def _reason(error: Exception, temporary: Path) -> int | None:
    """The error number behind a failed attempt; None if it is not the disk's fault."""
    try:  # HDF5 says nothing, or that a full disk denies permission
        with temporary.open("ab") as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as probed:
        error = probed
    number = error.errno if isinstance(error, OSError) else None
    return number if number in REMEDIES else None


def _remove_leftovers(path: Path) -> None:
    """Whoever wrote these is dead, or works on what is made anew here."""
    for leftover in path.parent.iterdir():
        name = leftover.name
        if name.startswith(f".{path.name}.") and name.endswith(".tmp"):
            _remove(leftover)


def _remove(path: Path) -> None:
    """Try: where files cannot be written any more, they cannot be removed either."""
    with suppress(OSError):
        path.unlink()


def _flush(path: Path) -> None:
    """Make sure what was written to a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
