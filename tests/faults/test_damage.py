"""Damaged records: refused by name, with the command that remakes them."""

import random
import re
import subprocess
from contextlib import suppress

import netCDF4
import pytest
import xarray as xr
from workplace import (
    COLLECTED,
    FP32,
    LEAN,
    assert_same_collection,
    copy_of,
    lost_results,
)

from pipeline_src.records.datasets import read_dataset, write_dataset
from pipeline_src.records.parts import parts_folder, read_part

FLIPS = 200


def truncate(content):
    return content[: len(content) // 2]


def test_collecting_names_every_damaged_record_and_how_to_remake_it(
    undisturbed, tmp_path, count_fault
):
    """One cut short, one empty: nothing is dropped, and the message's commands help."""
    workplace = copy_of(undisturbed, tmp_path / "copy", COLLECTED)
    content = (workplace / FP32).read_bytes()
    (workplace / FP32).write_bytes(truncate(content))
    (workplace / LEAN).write_bytes(b"")
    text = workplace.run(COLLECTED, exit_status=1)
    assert "FAILED collect_runs" in text
    assert not (workplace / COLLECTED).exists()
    remedies = set(re.findall(r"makes it anew: (rm \S+)$", text, re.M))
    assert remedies == {f"rm {FP32}", f"rm {LEAN}"}
    for remedy in remedies:
        subprocess.run(remedy.split(), cwd=workplace.folder, check=True)
    workplace.run(COLLECTED)
    lost = lost_results(workplace, undisturbed, FP32, LEAN)
    count_fault("a record cut short, or empty", trials=2, lost_results=lost)
    assert_same_collection(workplace, undisturbed)


def test_a_flipped_bit_is_refused_or_changes_nothing(
    undisturbed, tmp_path, count_fault
):
    """Two hundred places of a real record: never another number, text or unit."""
    content = (undisturbed / FP32).read_bytes()
    expected = read_dataset(undisturbed / FP32)
    places = random.Random(7)
    refused = changed = 0
    for trial in range(FLIPS):
        path = tmp_path / f"{trial}.nc"  # HDF5 may keep a damaged file open
        damaged = bytearray(content)
        damaged[places.randrange(len(content))] ^= 1 << places.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_dataset(path)
        except OSError:
            refused += 1
        else:
            changed += not found.identical(expected)
    assert refused, "no flip hit anything that matters"
    count_fault("a flipped bit in a record", trials=FLIPS, lost_results=changed)


def test_a_changed_setting_in_a_record_is_refused(undisturbed, tmp_path):
    """By a program that writes HDF5's own checksums anew."""
    path = tmp_path / "record.nc"
    path.write_bytes((undisturbed / FP32).read_bytes())
    with netCDF4.Dataset(path, "a") as file:
        changed = file.spec.replace('"learning_rate": 0.01', '"learning_rate": 0.91')
        assert changed != file.spec
        file.spec = changed
    with pytest.raises(OSError, match=r"record\.nc is not a readable.*makes it anew"):
        read_dataset(path)


def test_a_damaged_part_of_an_unfinished_record_counts_as_missing(tmp_path):
    path = tmp_path / "seed0.nc"
    assert read_part(path) is None
    write_dataset(xr.Dataset({"x": ("i", [1.0])}), path)
    xr.testing.assert_identical(read_part(path), read_dataset(path))
    path.write_bytes(truncate(path.read_bytes()))
    assert read_part(path) is None


def test_parts_go_with_their_record_and_stay_after_a_failure(tmp_path):
    """Those of an edited configuration too, but not those of other records."""
    for name in ("one/old", "two/key"):
        (tmp_path / ".partial" / name).mkdir(parents=True)
    with suppress(KeyboardInterrupt), parts_folder(tmp_path / "one.nc", "new") as parts:
        parts.mkdir()
        raise KeyboardInterrupt
    assert parts.exists()
    with parts_folder(tmp_path / "one.nc", "new") as parts:
        assert parts.exists()
    assert [left.name for left in (tmp_path / ".partial").iterdir()] == ["two"]
    with parts_folder(tmp_path / "two.nc", "key"):
        pass
    assert not (tmp_path / ".partial").exists()
