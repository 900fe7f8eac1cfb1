"""A disk that is full, or read-only: said in words, and nothing half-written."""

import shutil

import pytest
import torch
import xarray as xr
from workplace import COLLECTED, FP32, LEAN, copy_of, lost_results

from pipeline_src.graphs.embedded import digits_graph
from pipeline_src.graphs.fetching import FetchError, fetch_graph
from pipeline_src.graphs.files import write_graph
from pipeline_src.records.datasets import write_dataset
from pipeline_src.records.whole_files import write_whole

FULL = "No space left on device"


@pytest.fixture
def workplace(undisturbed, tmp_path):
    """With its graph, and without anything made from it."""
    return copy_of(undisturbed, tmp_path / "copy", FP32, LEAN, COLLECTED)


def test_a_run_on_a_full_disk_says_so_and_goes_on_once_there_is_space(
    undisturbed, workplace, small_disk, count_fault
):
    small_disk(workplace / "results", "size=24k")  # logs fit, records do not
    text = workplace.run(FP32, exit_status=1)
    assert "FAILED train_run digits-sage-2x8-fp32-s0to1" in text
    assert f"seed0.nc cannot be written: {FULL}" in text
    assert "free some space there and run snakemake again" in text
    assert not workplace.files("results")
    small_disk(workplace / "results", "size=10m")
    workplace.run(FP32)
    lost = lost_results(workplace, undisturbed, FP32)
    count_fault("the disk is full in a run", trials=1, lost_results=lost)


def test_read_only_results_are_refused_before_any_job(
    undisturbed, workplace, small_disk, count_fault
):
    small_disk(workplace / "results", "size=10m")
    shutil.copytree(undisturbed / "results" / "tiny", workplace / "results" / "tiny")
    (workplace / FP32).unlink()
    small_disk(workplace / "results", "size=10m,ro")
    text = workplace.run(FP32, exit_status=1)
    assert "results/tiny is of no use" in text
    assert "Read-only file system" in text
    assert "mount it for writing and run snakemake again" in text
    assert "rule train_run" not in text.partition("Job stats")[2].partition("total")[2]
    assert "Traceback" not in text
    small_disk(workplace / "results", "size=10m,rw")
    workplace.run(FP32)
    lost = lost_results(workplace, undisturbed, FP32, LEAN)
    count_fault("results are read-only", trials=1, lost_results=lost)


def write_graph_of_digits(path):
    write_graph(digits_graph(), path)


def write_record(path):
    values = torch.rand(30_000, generator=torch.Generator().manual_seed(0))
    write_dataset(xr.Dataset({"value": ("x", values.numpy())}), path)


def write_text(path):
    write_whole(path, "x" * 100_000)


@pytest.mark.parametrize("write", [write_graph_of_digits, write_record, write_text])
@pytest.mark.parametrize("free", [0, 32_768])
def test_every_writer_leaves_the_old_file_on_a_full_disk(
    tmp_path, small_disk, write, free, count_fault
):
    """Whether there is no space at all, or it comes to an end on the way."""
    small_disk(tmp_path / "disk", "size=64k")
    path = tmp_path / "disk" / "file"
    path.write_text("old")
    (tmp_path / "disk" / "rest").write_bytes(bytes(65_536 - 4096 - free))
    with pytest.raises(OSError, match=rf"disk/file cannot be.*{FULL}.*free some"):
        write(path)
    lost = path.read_bytes() != b"old"
    count_fault("the disk is full in a write", trials=1, lost_results=int(lost))
    assert {left.name for left in path.parent.iterdir()} == {"file", "rest"}


def test_a_fetch_onto_a_full_disk_blames_the_disk(tmp_path, small_disk):
    """Not the server, nor the mirror, and leaves nothing behind."""
    mirror = tmp_path / "mirror" / "Photo" / "raw"
    mirror.mkdir(parents=True)
    (mirror / "amazon_electronics_photo.npz").write_bytes(bytes(100_000))
    small_disk(tmp_path / "disk", "size=64k")
    with pytest.raises(FetchError, match=rf"{FULL}.*free some space"):
        fetch_graph("Photo", tmp_path / "disk" / "Photo", str(tmp_path / "mirror"))
    assert not list((tmp_path / "disk").iterdir())
