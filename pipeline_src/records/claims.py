"""Claims: files that say a process is at work, and stop saying so when it dies.

The operating system holds the lock of a claim for its process and gives it up with the
process, whatever kills it, so a claim is never stale. Where the file system knows no
locks, as some network ones, nobody can be asked and a claim is only a note.
"""

import fcntl
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import IO

UNKNOWN = "a process that cannot be asked, because files cannot be locked here"
ATTEMPTS = 10  # whoever asks for the holder locks the file too, for a moment
PAUSE = 0.1  # seconds between attempts

# Open as long as this process lives: closing one would give its claim up.
_claims: list[IO[str]] = []


class ClaimedError(Exception):
    """Another process that is alive holds the claim."""


def claim(path: Path) -> None:
    """Claim until this process ends.

    Raises:
        ClaimedError: if another process holds it, saying which.
        OSError: if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    attempts = ATTEMPTS
    while _lock(file) is False:
        attempts -= 1
        if not attempts:
            file.seek(0)
            holder = file.read()
            file.close()
            raise ClaimedError(f"it is held by {holder}")
        time.sleep(PAUSE)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    _claims.append(file)


def withdraw() -> None:
    """Take back what this process claimed: a note, unlike a lock, outlives it."""
    for file in _claims:
        file.truncate(0)
        file.close()
    _claims.clear()


def holder_of(path: Path) -> str | None:
    """Who holds the claim, in words; None if nobody does."""
    try:
        with path.open("r+", encoding="utf-8") as file:
            locked, holder = _lock(file), file.read()
    except FileNotFoundError:
        return None
    except OSError:
        return UNKNOWN
    if locked is None and holder:
        return f"{UNKNOWN} ({holder})"
    return holder if locked is False else None


def can_lock(folder: Path) -> bool:
    """Whether files can be made and locked in a folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile("w", dir=folder, encoding="utf-8") as file:
            return _lock(file) is True
    except OSError:
        return False


def _lock(file: IO[str]) -> bool | None:
    """Lock without waiting: whether that was possible, None where no lock is."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # each file system without locks says it by a number of its own
        return None
    return True
