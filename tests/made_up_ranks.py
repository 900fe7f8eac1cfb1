"""A function run by several processes that talk to each other, and what each returned.

They are forked from a server that has imported torch once: a fork of the test's own
process may not call backward, and importing anew takes seconds for each rank.
"""

import datetime
import multiprocessing
import traceback
from multiprocessing.connection import wait
from pathlib import Path

import torch
from torch import distributed as dist

SECONDS = 60  # until a rank counts as lost

_CONTEXT = multiprocessing.get_context("forkserver")
# What is imported once: the server knows the packages that are installed, and not the
# folder of the tests.
_CONTEXT.set_forkserver_preload(["torch.distributed", "scipy.sparse", "pandas"])


def run_ranks(function, size, folder, *arguments):
    """What function(*arguments) returns on each rank of a gloo group.

    Raises:
        AssertionError: with the tracebacks of ranks that failed.
    """
    folder = Path(folder)
    ranks = [
        _CONTEXT.Process(target=_run, args=(function, rank, size, folder, arguments))
        for rank in range(size)
    ]
    for one in ranks:
        one.start()
    waiting = {one.sentinel: one for one in ranks}
    failed = []
    while waiting and not failed:
        ended = wait(list(waiting), timeout=SECONDS)
        failed = [
            rank
            for rank, one in enumerate(ranks)
            if one.sentinel in ended and one.exitcode != 0
        ]
        waiting = {key: one for key, one in waiting.items() if key not in ended}
        if not ended:
            failed = [rank for rank, one in enumerate(ranks) if one.is_alive()]
    for one in ranks:
        one.kill()
        one.join()
    if failed:
        errors = [path.read_text(encoding="utf-8") for path in folder.glob("error*")]
        raise AssertionError(f"ranks {failed} of {size} failed:" + "\n".join(errors))
    return [torch.load(folder / f"result{rank}") for rank in range(size)]


def _run(function, rank, size, folder, arguments):
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'rendezvous'}",
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=SECONDS),
        )
        torch.save(function(*arguments), folder / f"result{rank}")
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error{rank}").write_text(traceback.format_exc(), encoding="utf-8")
        raise SystemExit(1) from None
