"""File systems without locks, made by a library that is loaded before all others."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
from checkouts import ROOT
from workplace import COLLECTED, FP32, LEAN, copy_of, lost_results

SHIM = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

int flock(int file, int operation) { errno = atoi(getenv("NO_LOCKS")); return -1; }

static int answer(int file, int command, long argument) {
    if (command == F_SETLK || command == F_SETLKW || command == F_GETLK) {
        errno = atoi(getenv("NO_LOCKS"));
        return -1;
    }
    return syscall(SYS_fcntl, file, command, argument);
}

#define PASSED \\
    va_list rest; va_start(rest, command); \\
    long argument = va_arg(rest, long); va_end(rest); \\
    return answer(file, command, argument);
int fcntl(int file, int command, ...) { PASSED }
int fcntl64(int file, int command, ...) { PASSED }
"""
SAVES = """
import sys
from pathlib import Path
import numpy, xarray
from pipeline_src.records.datasets import read_dataset, write_dataset
path = Path(sys.argv[1])
write_dataset(xarray.Dataset({"value": ("x", numpy.arange(3.0))}), path)
print(read_dataset(path)["value"].values.tolist())
"""
NUMBERS = ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL"]


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """Path of the library; skip where it cannot be had."""
    if not (sys.platform == "linux" and (compiler := shutil.which("gcc"))):
        pytest.skip("no gcc, or another loader than Linux's")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "locks.c").write_text(SHIM, encoding="utf-8")
    library = folder / "locks.so"
    command = [compiler, "-shared", "-fPIC", "-w", "-o", library, folder / "locks.c"]
    subprocess.run(command, check=True)
    return library


def without_locks(shim, number):
    """Environment in which every lock fails in this way; HDF5 is told nothing."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HDF5_")}
    preloaded = {"LD_PRELOAD": str(shim), "NO_LOCKS": str(getattr(errno, number))}
    return environment | preloaded | {"OMP_NUM_THREADS": "1"}


def python(code, *arguments, environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )


@pytest.mark.parametrize("number", NUMBERS)
def test_records_are_written_and_read_without_locks(shim, tmp_path, number):
    environment = without_locks(shim, number)
    done = python(SAVES, tmp_path / "record.nc", environment=environment)
    assert done.stdout == "[0.0, 1.0, 2.0]\n", done.stderr


def test_a_lock_that_hdf5_asks_for_all_the_same_is_blamed(shim, tmp_path):
    """Not the rights to write, nor a record that is sound."""
    environment = without_locks(shim, "ENOLCK")
    path = tmp_path / "record.nc"
    done = python("import netCDF4\n" + SAVES, path, environment=environment)
    assert "HDF5_USE_FILE_LOCKING=FALSE before Python starts" in done.stderr
    assert not list(tmp_path.iterdir())
    assert python(SAVES, path, environment=environment).returncode == 0
    reads = SAVES.replace("write_dataset(x", "(lambda *_: 0)(x")
    done = python("import netCDF4\n" + reads, path, environment=environment)
    assert "nothing is wrong with the file" in done.stderr
    assert "delete it and run" not in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_run_works_without_locks_and_its_claim_is_a_note(undisturbed, tmp_path, shim):
    """A file system's own way to say no; the numbers are told apart nowhere."""
    number = "ENOLCK"
    workplace = copy_of(undisturbed, tmp_path / "copy", FP32, LEAN, COLLECTED)
    start = [sys.executable, "-m", "snakemake", "--cores", "2", COLLECTED]
    for again in (False, True):
        done = subprocess.run(
            start,
            cwd=workplace.folder,
            env=without_locks(shim, number),
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Traceback" not in done.stderr
        assert "Note:" not in done.stderr, "a note ends with its writer"
        assert again == ("Nothing to be done" in done.stdout + done.stderr)
    assert not lost_results(workplace, undisturbed, FP32, LEAN)
    claim = workplace / ".snakemake" / "claims" / "tiny"
    claim.write_text("process 1 on node", encoding="utf-8")  # as a kill leaves it
    done = subprocess.run(
        [*start, "--dry-run"],
        cwd=workplace.folder,
        env=without_locks(shim, number),
        capture_output=True,
        encoding="utf-8",
    )
    assert "cannot be asked, because files cannot be locked here (process 1 o" in (
        done.stderr
    )
    assert "--unlock takes away what it left" in done.stderr
