"""`make gpu`, rehearsed on a CPU and on a machine that has little."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline_src.measuring.gpu import kernels, machine
from pipeline_src.measuring.gpu.results import note, read_rows
from pipeline_src.measuring.gpu.summary import TABLES, write_summary

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "workflow" / "gpu.py"
GPU = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

# What a bare machine lacks, and a network that answers nobody.
BARE = """
import socket
import sys

LACKING = {"snakemake", "xarray", "netCDF4", "pandas", "psutil", "jsonschema"}


class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in LACKING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def refuse(*arguments):
    raise AssertionError(f"no network here: {arguments}")


sys.meta_path.insert(0, Lacking())
socket.socket.connect = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """A run of three parts on a machine without network and most packages."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(BARE, encoding="utf-8")
    options = ["--device", "cpu", "--plain", "--seconds", "500"]
    parts = ("agreement", "lean_agreement", "kernels")
    options += ["--results", str(folder / "gpu"), "--parts", *parts]
    found = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    (results,) = (folder / "gpu").iterdir()
    return SimpleNamespace(text=found.stdout, folder=results)


def test_a_bare_machine_without_network_ends_with_results(rehearsal):
    states = {row["part"]: row["state"] for row in parts_of(rehearsal.folder)}
    assert states == dict.fromkeys(("agreement", "lean_agreement", "kernels"), "done")
    assert len(read_rows(rehearsal.folder / "agreement.csv")) == 7
    rows = read_rows(rehearsal.folder / "kernels.csv")
    kinds = [kind for kind, _, _ in kernels.SETTINGS]
    # Two moves and two operations, or four of lean's.
    assert len(rows) == 4 * kinds.count("block-wise") + 6 * kinds.count("lean")
    description = json.loads((rehearsal.folder / "machine.json").read_text())
    assert {"xarray", "netCDF4"} <= set(description["lacking"])


def test_progress_and_what_lacks_are_shown(rehearsal):
    assert re.search(r"kernels: \d+ s at most", rehearsal.text)
    assert "operation=compress implementation=plain" in rehearsal.text
    assert "NOTE machine: netCDF4 is not here" in rehearsal.text
    assert f"summary: {rehearsal.folder / 'summary.md'}" in rehearsal.text


def test_the_summary_says_that_it_is_a_rehearsal_and_what_was_not_measured(rehearsal):
    text = (rehearsal.folder / "summary.md").read_text(encoding="utf-8")
    assert "A rehearsal on a CPU" in text
    assert "0 of 139776 codes differ from the CPU's, each beside an edge." in text
    assert "Lean's kernels give the CPU's bits." in text
    _, _, training = text.partition(f"## {TABLES['training'][0]}")
    assert training.strip().startswith("Not measured.")


def parts_of(folder):
    return read_rows(folder / "parts.csv")


# --- time -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "last"),
    [(600, "products"), (125, "tests"), (45, "aggregation"), (10, None)],
)
def test_the_last_parts_are_left_out_first(seconds, last):
    fitting = GPU.parts_that_fit(GPU.PARTS, seconds)
    names = [part.name for part in GPU.PARTS]
    expected = names[: names.index(last) + 1] if last else []
    assert [part.name for part in fitting] == expected


def run_of(tmp_path, monkeypatch, child, seconds=100.0):
    """A run whose every part is a Python text."""
    monkeypatch.setitem(
        GPU.run_part.__globals__,
        "command_of",
        lambda part, run, seconds: [sys.executable, "-c", child],
    )
    run = object.__new__(GPU.Run)
    run.device, run.plain, run.folder = "cpu", True, tmp_path
    run.machine, run.next_clocks = {"device": "made up"}, 0.0
    run.end = time.monotonic() + seconds
    return run


def is_alive(pid):
    try:
        stat = Path("/proc", pid, "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_part_that_takes_too_long_is_stopped_and_its_rows_stay(
    tmp_path, monkeypatch, capfd
):
    """What it has started itself, as a compiler's workers, ends with it."""
    child = (
        "import subprocess, sys, time;"
        "worker = [sys.executable, '-c', 'import time; time.sleep(600)'];"
        "print('measured by', subprocess.Popen(worker).pid, flush=True);"
        "time.sleep(600)"
    )
    run = run_of(tmp_path, monkeypatch, child)
    start = time.monotonic()
    assert GPU.run_part(GPU.PARTS[0], run, 5.0) == "stopped"
    assert time.monotonic() - start < 60
    found = re.search(r"measured by (\d+)", capfd.readouterr().out)
    assert found is not None
    # The kernel ends a process that it was told to kill when it next runs it.
    give_up = time.monotonic() + 30
    while is_alive(found[1]) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not is_alive(found[1])
    (row,) = read_rows(tmp_path / "notes.csv")
    assert row["note"] == "stopped after 5 s; what it had measured stays"


def test_a_part_that_fails_is_said_to_have_failed(tmp_path, monkeypatch, capfd):
    run = run_of(tmp_path, monkeypatch, "raise SystemExit('device-side assert')")
    assert GPU.run_part(GPU.PARTS[0], run, 60.0) == "failed"
    assert "device-side assert" in capfd.readouterr().out


# --- tests ----------------------------------------------------------------------------

LOG = """\
collected 488 items / 1 error / 459 deselected / 4 selected
tests/test_a.py::test_codes[2-None] PASSED [ 25%]
tests/test_a.py::test_words[a b, c] SKIPPED (no CUDA device) [ 50%]
tests/test_a.py::test_rows {outcome} [ 75%]
SKIPPED [1] tests/test_a.py:3: no CUDA device
ERROR tests/test_b.py - ModuleNotFoundError: No module named 'netCDF4'
{line}
"""


@pytest.mark.parametrize(
    ("outcome", "line", "state"),
    [
        ("PASSED", "", "done"),
        ("FAILED", "", "failed"),
        ("PASSED", "ERROR tests/test_c.py - NameError: name 'x'", "failed"),
    ],
)
def test_outcomes_are_kept_and_only_what_lacks_a_package_is_excused(
    tmp_path, monkeypatch, outcome, line, state
):
    run = run_of(tmp_path, monkeypatch, "")
    log = LOG.format(outcome=outcome, line=line)
    (tmp_path / "tests.log").write_text(log, encoding="utf-8")
    assert GPU.keep_outcomes(run, "failed") == state  # pytest ends with 1 for errors
    rows = read_rows(tmp_path / "tests.csv")
    assert [row["outcome"] for row in rows] == ["passed", "skipped", outcome.lower()]
    assert rows[1]["test"] == "tests/test_a.py::test_words[a b, c]"
    notes = [row["note"] for row in read_rows(tmp_path / "notes.csv")]
    assert "tests/test_b.py is skipped: netCDF4 is not here" in notes
    assert "1 of 4 tests did not run" in notes


def test_without_outcomes_failed_tests_have_failed(tmp_path, monkeypatch):
    run = run_of(tmp_path, monkeypatch, "")
    (tmp_path / "tests.log").write_text("no such option", encoding="utf-8")
    assert GPU.keep_outcomes(run, "failed") == "failed"


def test_only_files_with_marked_tests_are_collected(tmp_path, monkeypatch):
    run = run_of(tmp_path, monkeypatch, "")
    command = runpy.run_path(str(SCRIPT))["command_of"]
    (tests,) = [part for part in GPU.PARTS if part.name == "tests"]
    files = [one for one in command(tests, run, 1.0) if one.endswith(".py")]
    assert files
    assert str(Path(__file__).relative_to(ROOT)) not in files  # it runs the command
    texts = [(ROOT / one).read_text(encoding="utf-8") for one in files]
    assert all("mark.gpu" in text for text in texts)


# --- the machine ----------------------------------------------------------------------


def test_a_machine_without_gpu_or_with_an_old_torch_is_told_so(monkeypatch):
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    assert machine.obstacle("cpu") == ""
    assert re.search(
        r"finds no CUDA device.*make gpu DEVICE=cpu", machine.obstacle("cuda")
    )
    for version, allowed in {
        "2.11.0+cu130": True,
        "2.13.1": True,
        "3.0": True,
        "2.9.1": False,
        "1.13.0": False,
    }.items():
        monkeypatch.setattr(machine.torch, "__version__", version)
        assert (machine.obstacle("cpu") == "") is allowed
    assert machine.obstacle("cpu") == "torch 2.11 or newer is needed, got 1.13.0"


@pytest.mark.parametrize("packages", [[], ["triton"]])
def test_kernels_are_compiled_where_they_can_be(monkeypatch, packages):
    class Properties:
        name, major, minor, multi_processor_count = "A GPU", 9, 0, 132
        total_memory, L2_cache_size, uuid = 2**36, 50 * 2**20, "0123"

    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        machine.torch.cuda, "get_device_properties", lambda index: Properties
    )
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/cc")
    monkeypatch.setattr(machine, "_is_here", lambda name: name in packages)
    found = machine.describe_machine("cuda")
    assert found["compiles"] == (packages == ["triton"])
    assert (found["device"], found["capability"]) == ("A GPU", "9.0")
    assert ("triton" in found["lacking"]) == (packages == [])
    json.dumps(found)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert not machine.describe_machine("cuda")["compiles"]


def test_make_gpu_needs_no_environment_of_its_own():
    """The rule has no prerequisite and calls PYTHON, not what is in .venv."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    rule = re.search(r"^gpu:(.*)\n((?:\t.*\n)+)", text, re.M)
    assert rule is not None
    assert rule[1].strip() == ""
    assert rule[2].strip().startswith("$(PYTHON) workflow/gpu.py")
    assert "snakemake" not in SCRIPT.read_text(encoding="utf-8")


# --- the summary ----------------------------------------------------------------------

KERNELS = """\
operation,implementation,bits,block_size,share_of_copy
compress,compiled,2,256,0.5
compress,plain,2,256,0.01
compress,compiled,2,63,0.4
encode,compiled,2,1024,0.3
output,compiled,2,1024,0.7
"""


@pytest.fixture
def folder(tmp_path):
    description = {"device": "A GPU", "torch": "2.11.0", "lacking": {}, "driver": "580"}
    text = json.dumps({**description, "cpu_only": False, "capability": "9.0"})
    (tmp_path / "machine.json").write_text(text, encoding="utf-8")
    (tmp_path / "kernels.csv").write_text(KERNELS, encoding="utf-8")
    return tmp_path


def test_a_summary_is_made_of_whatever_is_there(folder):
    note(folder, "kernels", "left out after 9 s: 8 bits, blocks of 256")
    (folder / "clocks.csv").write_text(
        "part,clocks.sm\nkernels,1980\nkernels,1410\nkernels,[N/A]\nkernels,1500\n"
    )
    text = write_summary(folder, folder / "none.csv").read_text(encoding="utf-8")
    assert "torch 2.11.0, driver 580, capability 9.0." in text
    assert "rehearsal" not in text
    assert "kernels: left out after 9 s" in text
    assert "kernels 1410 to 1980, median 1500" in text
    assert "has no estimate for sm_90" in text


def test_estimates_stand_beside_what_was_measured(folder):
    """Of the same kernel, and for the same kind of device."""
    estimates = folder / "gpu_estimates.csv"
    estimates.write_text(
        "case,device,estimated_share\n"
        "compress 2 bits block 64,sm_80,0.99\n"
        "compress 2 bits block 64,sm_90,0.61\n"
        "compress 2 bits block 63,sm_90,0.62\n"
        "rectify 2 bits,sm_90,0.63\n"
        "output 4 bits,sm_90,0.98\n"
    )
    text = write_summary(folder, estimates).read_text(encoding="utf-8")
    _, _, table = text.partition("## Estimated beside measured")
    assert table.strip().splitlines()[2:] == [
        "| compress 2 bits block 64 | 256 | 0.61 | 0.5 |",
        "| compress 2 bits block 63 | 63 | 0.62 | 0.4 |",
        "| rectify 2 bits | 1024 | 0.63 | 0.3 |",
    ]


def test_a_device_without_estimates_is_named_and_harms_nothing(folder):
    estimates = folder / "gpu_estimates.csv"
    estimates.write_text("case,device,estimated_share\nrectify 2 bits,sm_80,0.9\n")
    text = write_summary(folder, estimates).read_text(encoding="utf-8")
    assert "has no estimate for sm_90" in text
