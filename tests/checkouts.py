"""Copies of the repository, and Snakemake called in them as a user calls it."""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PARTS = ("workflow", "pipeline_src", "config", "profiles")
FILES = ("Snakefile", "environment.yml")
UNTRACKED = shutil.ignore_patterns("__pycache__")
AT_ONCE = """
if __name__ == "__main__":
    from pathlib import Path

    for path in snakemake.output:
        Path(path).write_text("made by the test: 1 ± 2", encoding="utf-8")
    raise SystemExit
"""
# Importing Snakemake takes longer than planning a run. A server imports it once, and
# every call is a fork of it: as separate as a process of its own, and started at once.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "snakemake.cli"])


def call(*command, environment=None):
    return subprocess.run(
        [BIN / command[0], *command[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )


def snakemake(*arguments, cwd=ROOT, exit_status=0):
    """What the command prints."""
    with tempfile.NamedTemporaryFile(mode="r") as output:
        process = SERVER.Process(target=_in_fork, args=(arguments, cwd, output.name))
        process.start()
        process.join()
        text = output.read()
    assert process.exitcode == exit_status, text[-3000:]
    return text


def _in_fork(arguments, folder, output):
    from snakemake.cli import main

    os.chdir(folder)
    with open(output, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    main(arguments)


def planned(*arguments, cwd=ROOT):
    """Jobs of a dry run, by rule."""
    text = snakemake("--dry-run", *arguments, cwd=cwd)
    table = text.partition("Job stats:")[2].partition("\ntotal")[0]
    return Counter(
        {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, re.M)}
    )


def copy_repository(folder: Path) -> None:
    """What a run needs of the repository; no results."""
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=UNTRACKED)
    for file in FILES:
        shutil.copy2(ROOT / file, folder)


def compute_nothing(folder: Path) -> None:
    """Let the scripts of a copy write their outputs at once.

    They keep the imports of the originals, so Snakemake plans as ever.
    """
    for script in (folder / "workflow" / "scripts").glob("*.py"):
        text = script.read_text(encoding="utf-8")
        script.write_text(AT_ONCE + text, encoding="utf-8")


def run_at_once(folder: Path) -> None:
    """The default run, by scripts that compute nothing."""
    compute_nothing(folder)
    snakemake("--cores", "2", cwd=folder)
    assert not planned(cwd=folder)
