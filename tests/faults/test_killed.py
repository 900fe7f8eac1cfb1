"""kill -9, at any moment: the same command goes on, and nothing is lost."""

import contextlib
import os
import random
import signal
import time

import numpy as np
import psutil
import pytest
import xarray as xr
from workplace import (
    COLLECTED,
    FP32,
    LEAN,
    TINY,
    assert_same_collection,
    checkout,
    copy_of,
    kill,
    lost_results,
    wait_for,
)

from pipeline_src.records.datasets import read_dataset, write_dataset
from pipeline_src.records.parts import read_part

MANY_SEEDS = TINY.replace("seeds: 2", "seeds: 16\n    seeds_per_job: 16")


def test_after_a_kill_the_same_command_finishes_what_is_missing(
    undisturbed, tmp_path, count_fault
):
    """Finished seeds of an unfinished job included; no --unlock, nothing left over."""
    workplace = copy_of(undisturbed, tmp_path / "copy", LEAN, COLLECTED)
    before = (workplace / FP32).stat().st_mtime_ns
    process = workplace.begin(COLLECTED)
    wait_for(lambda: list(workplace.folder.rglob("seed0.nc")), process)
    kill(process)
    text = workplace.run(COLLECTED)
    assert "seed 0: resumed" in text
    assert (workplace / FP32).stat().st_mtime_ns == before
    lost = lost_results(workplace, undisturbed, FP32, LEAN)
    count_fault("kill -9 of everything", trials=1, lost_results=lost)
    assert_same_collection(workplace, undisturbed)


@pytest.mark.slow
def test_a_killed_job_fails_alone_and_is_made_again(undisturbed, tmp_path, count_fault):
    """As the kernel does when memory runs out; the other run is finished first."""
    workplace = copy_of(undisturbed, tmp_path / "copy", FP32, LEAN, COLLECTED)
    process = workplace.begin(COLLECTED)

    def job():
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # has ended since
                training = "train_run.py" in " ".join(child.cmdline())
                if training and list(workplace.folder.rglob("seed0.nc")):
                    return child
        return None

    wait_for(job, process).send_signal(signal.SIGKILL)
    text = process.communicate()[0]
    assert process.returncode == 1
    assert "Error in rule train_run" in text
    assert len(list((workplace / FP32).parent.glob("*.nc"))) == 1
    workplace.run(COLLECTED)
    lost = lost_results(workplace, undisturbed, FP32, LEAN)
    count_fault("kill -9 of one job", trials=1, lost_results=lost)
    assert_same_collection(workplace, undisturbed)


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path, count_fault):
    """One run of many seeds, killed until it is finished, at most ten times.

    Whatever stands is whole each time.
    """
    calm = checkout(tmp_path / "calm", MANY_SEEDS)
    records = [path.replace("s0to1", "s0to15") for path in (FP32, LEAN)]
    start = time.monotonic()
    calm.run(COLLECTED)
    whole = time.monotonic() - start
    workplace = checkout(tmp_path / "killed", MANY_SEEDS)
    moments = random.Random(5)
    killed = 0
    for _ in range(10):
        process = workplace.begin(COLLECTED)
        time.sleep(moments.uniform(0, 0.5 * whole))
        if process.poll() is None:
            kill(process)
            killed += process.returncode == -signal.SIGKILL
        for path in workplace.files("results"):
            if not path.name.startswith("."):
                read_dataset(workplace / path)
    workplace.run(COLLECTED)
    lost = lost_results(workplace, calm, *records)
    count_fault("kill -9 at a random moment", trials=killed, lost_results=lost)
    assert_same_collection(workplace, calm)


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file_or_the_new(
    tmp_path, count_fault
):
    """Ten writers of four megabytes, killed once their temporary file has grown."""
    path = tmp_path / "record.nc"
    noise = np.random.default_rng(0).random(500_000)
    versions = [xr.Dataset({"x": ("i", noise + k)}, attrs={"k": k}) for k in range(2)]
    write_dataset(versions[0], path)
    moments = random.Random(6)
    interrupted = lost = 0
    for trial in range(10):
        if (writer := os.fork()) == 0:
            while True:
                write_dataset(versions[trial % 2], path)
        least = moments.uniform(0, 3e6)
        temporary = tmp_path / f".record.nc.{writer}.tmp"
        while not (temporary.exists() and _size(temporary) >= least):
            pass
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        interrupted += temporary.exists()
        found = read_part(path)
        lost += not any(version.identical(found) for version in versions)
    count_fault(
        "kill -9 while a record is written", trials=interrupted, lost_results=lost
    )
    write_dataset(versions[0], path)
    assert [left.name for left in tmp_path.iterdir()] == ["record.nc"]


def _size(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:  # renamed since
        return -1
