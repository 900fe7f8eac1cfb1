"""Claims: files that say a process is at work, and stop saying so when it dies.

The operating system holds the lock of a claim for its process and gives it up with the
process, whatever kills it, so a claim is never stale. Where the file system knows no
locks, as some network ones, nobody can be asked and a claim is only a note.
"""

import errno
import fcntl
import os
import platform
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
    while not _lock(file):
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


def holder_of(path: Path) -> str | None:
    """Who holds the claim, in words; None if nobody does."""
    try:
        with path.open("r+", encoding="utf-8") as file:
            return None if _lock(file, or_note=False) else file.read()
    except FileNotFoundError:
        return None
    except OSError:
        return UNKNOWN


def _lock(file: IO[str], or_note: bool = True) -> bool:
    """Lock without waiting. Where locks do not exist, a claim is a note."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if not or_note or error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    return True
