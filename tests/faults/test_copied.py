"""Copied checkouts and clocks that jump: what is made again, what goes unnoticed."""

import os
import shutil
import subprocess
import time

import pytest
from workplace import (
    COLLECTED,
    FP32,
    GRAPH,
    TINY,
    Workplace,
    checkout,
    copy_of,
    without_times,
)

from pipeline_src.records.datasets import read_dataset

pytestmark = pytest.mark.slow  # a dozen starts of Snakemake
DAY = 24 * 60 * 60  # seconds
SOURCE = "pipeline_src/graphs/splits.py"


def date(workplace, seconds, *parts):
    """Date every file of these parts."""
    for part in parts:
        for path in (workplace.folder / part).rglob("*"):
            os.utime(path, (seconds, seconds))


@pytest.mark.parametrize("options", ["-r", "-a"])
def test_a_copy_of_everything_has_nothing_to_do(undisturbed, tmp_path, options):
    """With `.snakemake`, whose checksums know that nothing changed."""
    subprocess.run(["cp", options, undisturbed.folder, tmp_path / "copy"], check=True)
    assert not Workplace(tmp_path / "copy").planned(FP32)


def test_dates_in_the_future_run_nothing(undisturbed, tmp_path):
    workplace = copy_of(undisturbed, tmp_path / "copy")
    date(workplace, time.time() + DAY, "pipeline_src", "resources")
    assert not workplace.planned(FP32)


def test_results_in_a_fresh_clone_bring_their_state_or_are_touched(
    undisturbed, tmp_path
):
    """Sources of a clone are newer than results: without a state all is made again."""
    clone = checkout(tmp_path / "clone")
    for part in ("results", "resources"):
        shutil.copytree(undisturbed / part, clone / part)
    date(clone, time.time(), "pipeline_src")
    assert clone.planned(FP32) == {"prepare_graph", "train_run"}
    shutil.rmtree(clone / ".snakemake")  # of the dry run
    shutil.copytree(undisturbed / ".snakemake", clone / ".snakemake")
    assert not clone.planned(FP32)
    shutil.rmtree(clone / ".snakemake")
    clone.run("--touch", FP32)
    assert not clone.planned(FP32)


def test_an_edit_is_noticed_by_its_date_and_its_content(undisturbed, tmp_path):
    """Dated before what depends on it, by a clock set back, it is not: touch it."""
    workplace = copy_of(undisturbed, tmp_path / "copy")
    with (workplace / SOURCE).open("a") as file:
        file.write("# edited\n")
    os.utime(workplace / SOURCE, (0, 0))
    assert not workplace.planned(GRAPH)
    os.utime(workplace / SOURCE)
    assert workplace.planned(GRAPH) == {"prepare_graph"}


def test_a_record_of_another_configuration_is_refused(undisturbed, tmp_path):
    """As a job leaves it that outlived its workflow: whole, and nobody knows of it."""
    other = checkout(tmp_path / "other", TINY.replace("epochs: 3", "epochs: 2"))
    other.run(FP32)
    workplace = copy_of(undisturbed, tmp_path / "copy", COLLECTED)
    shutil.copy(other / FP32, workplace / FP32)
    workplace.run("--cleanup-metadata", FP32)
    text = workplace.run(COLLECTED, exit_status=1)
    assert f"{FP32}: training.epochs is 2, 3 is asked for" in text
    assert f"rm {FP32}" in text
    (workplace / FP32).unlink()
    workplace.run(COLLECTED)
    again, before = (place / COLLECTED for place in (workplace, undisturbed))
    assert without_times(read_dataset(again)).identical(
        without_times(read_dataset(before))
    )
