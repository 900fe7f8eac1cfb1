"""Ranks of this machine: results come back, and a lost rank ends all with its words."""

import os
import time

import pytest
import rank_cases

from pipeline_src.distributed.jobs.local import run_on_ranks


def test_each_rank_answers():
    assert run_on_ranks(rank_cases.add, 3, 10) == [(0, 33), (1, 33), (2, 33)]


def test_an_error_is_told_and_nobody_waits():
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?s)1\] of 2 failed.*rank 1 says"):
        run_on_ranks(rank_cases.fail_on_rank_1, 2, "error")
    assert time.monotonic() - start < 55


def test_a_killed_rank_is_noticed():
    with pytest.raises(RuntimeError, match=r"(?s)1\] of 2 failed:.*rank 1 died"):
        run_on_ranks(rank_cases.fail_on_rank_1, 2, "kill")


def test_ranks_that_never_answer_are_ended(tmp_path):
    with pytest.raises(RuntimeError, match=r"ranks \[0, 1\] of 2 gave no answer"):
        run_on_ranks(rank_cases.sleep, 2, tmp_path, seconds=2)
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)
