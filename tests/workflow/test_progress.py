"""What is told of a run in progress: counts, seeds, failures, and the time left."""

import os
import runpy
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkouts import snakemake

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "workflow" / "progress.py"
PROGRESS = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
NOW = datetime(2026, 11, 21, 12, 1, 40).timestamp()
CELL = "digits-sage-2x64-lean-s0to4"

LOG = """
  Command: snakemake --cores 2
Job stats:
job              count
-------------  -------
train_run            4
plot_figure          2
all                  1
total                7

[Sat Nov 21 12:00:00 2026]
localrule train_run:
    log: results/a/logs/train_run/one.log
    jobid: 3
    wildcards: cell=one
[Sat Nov 21 12:00:00 2026]
rule train_run:
    log: results/a/logs/train_run/two.log
    jobid: 4
    wildcards: cell=two
[Sat Nov 21 12:00:30 2026]
Finished jobid: 3 (Rule: train_run)
1 of 7 steps (14%) done
[Sat Nov 21 12:00:40 2026]
Error in rule train_run:
    message: None
    jobid: 4
    log: results/a/logs/train_run/two.log (check log file(s) for error details)
[Sat Nov 21 12:00:40 2026]
localrule train_run:
    log: results/a/logs/train_run/CELL.log
    jobid: 5
    wildcards: cell=CELL
""".replace("CELL", CELL)


def epochs(seed, *done, of=60):
    return "".join(
        f"cell seed {seed}: epoch {epoch} of {of}, loss 0.1\n" for epoch in done
    )


def test_jobs_are_counted_by_rule_and_state():
    run = PROGRESS.read_log(LOG)
    assert dict(run.planned) == {"train_run": 4, "plot_figure": 2}
    assert [run.count(state) for state in ("done", "running", "failed")] == [1, 1, 1]
    assert (run.waiting("train_run"), run.waiting("plot_figure")) == (1, 2)
    assert run.seconds_a_job("train_run") == 30
    assert run.seconds_a_job("plot_figure") is None
    assert not run.ended
    assert PROGRESS.read_log(LOG + "Complete log(s): a.log\n").ended


def test_the_target_is_no_job():
    end = "localrule all:\n    jobid: 0\n[Sat Nov 21 12:01:00 2026]\n"
    run = PROGRESS.read_log(LOG + end + "Finished jobid: 0 (Rule: all)\n")
    assert run.count("done") == 1


def test_a_job_that_is_retried_runs_again():
    again = LOG.partition("Finished")[0].partition("[Sat Nov 21 12:00:30")[0]
    retried = LOG + again[again.rindex("rule train_run:") :]
    run = PROGRESS.read_log(retried)
    assert run.count("failed") == 0
    assert run.count("running") == 2


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("", (0, 5, 0.0)),
        (epochs(0, 30), (0, 5, 0.1)),
        (epochs(0, 30, 60) + epochs(1, 15), (1, 5, 0.25)),
        ("cell seed 0: resumed\ncell seed 1: resumed\n", (2, 5, 0.4)),
        # Another attempt in the same log, after its inputs changed: from the start.
        (epochs(0, 60) + epochs(1, 60) + epochs(0, 30), (0, 5, 0.1)),
        # Another attempt that goes on.
        (epochs(0, 60) + epochs(1, 30) + "cell seed 0: resumed\n", (1, 5, 0.2)),
        ("".join(epochs(seed, 60) for seed in range(5)), (5, 5, 1.0)),
    ],
)
def test_seeds_are_counted_in_the_log_of_a_training(log, told):
    assert PROGRESS.seeds_of(CELL, log) == pytest.approx(told)


def test_what_is_no_block_of_seeds_has_none():
    assert PROGRESS.seeds_of("arxiv_shape-sage-3x128", "round 1 of 3") is None


def test_the_time_left_follows_from_what_is_done():
    """A fifth done in 60 s: 240 s to go; then one of 30 s, one by one."""
    run = PROGRESS.read_log(LOG)
    assert PROGRESS.time_left(run, {"5": 0.2}, NOW) == (pytest.approx(270), 2)
    # Without a share of it: over the mean of 30 s, so it may end at once.
    assert PROGRESS.time_left(run, {}, NOW) == (pytest.approx(30), 2)
    assert PROGRESS.time_left(PROGRESS.Run(), {}, NOW) == (0, 0)


def test_jobs_side_by_side_share_the_time_but_the_longest_takes_its_own():
    start = LOG[LOG.rindex("localrule") :].replace("jobid: 5", "jobid: 6")
    run = PROGRESS.read_log(LOG + start)
    assert run.waiting("train_run") == 0
    left, _ = PROGRESS.time_left(run, {"5": 0.2, "6": 0.5}, NOW)
    assert left == pytest.approx(240), "not the half of 240 + 60"


def test_the_page_names_what_runs_and_what_failed(tmp_path):
    log = tmp_path / "results/a/logs/train_run" / f"{CELL}.log"
    log.parent.mkdir(parents=True)
    log.write_text(epochs(0, 60) + epochs(1, 30))
    page = PROGRESS.table(PROGRESS.read_log(LOG), tmp_path, NOW)
    assert page.splitlines()[0] == (
        "1 of 6 jobs done, 1 running, 1 failed; about 2 min 50 s left and 2 jobs of "
        "unknown length"
    )
    assert f"train_run {CELL}: 1 of 5 seeds, 30%, for 1 min 0 s" in page
    assert "train_run two: see results/a/logs/train_run/two.log" in page
    (row,) = (line.split() for line in page.splitlines() if line.startswith("train"))
    assert row == ["train_run", "1/4", "1", "1", "1", "30.0"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (7300, "2 h 1 min")],
)
def test_durations_have_two_units(seconds, words):
    assert PROGRESS.duration(seconds) == words


WORKFLOW = """
rule all:
    input: expand("results/{cell}.txt", cell=["a-s0to1", "b-s0to0"])

rule train_run:
    output: "results/{cell}.txt"
    log: "logs/{cell}.log"
    shell: "[[ {wildcards.cell} == a* ]] && echo done > {output}"
"""


def test_the_log_of_this_snakemake_is_understood(tmp_path):
    """One job that succeeds and one that fails, through the command line."""
    (tmp_path / "Snakefile").write_text(WORKFLOW)
    words = ("--cores", "1", "--keep-going")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    snakemake(*words, cwd=tmp_path, exit_status=1)
    # A job on a cluster's node writes a log of its own, which is not the run's.
    other = tmp_path / ".snakemake" / "log" / "9999.snakemake.log"
    other.write_text("  Command: snakemake --mode remote\n")
    done = subprocess.run(
        [sys.executable, SCRIPT, "--directory", tmp_path],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 2 jobs done, 0 running, 1 failed; Snakemake has ended" in done.stdout
    assert "train_run b-s0to0: see logs/b-s0to0.log" in done.stdout


def test_a_folder_without_a_run_is_said_to_be_one(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--directory", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Snakemake left no log" in done.stderr
    assert "Traceback" not in done.stderr
