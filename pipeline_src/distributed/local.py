"""Ranks as processes of this machine, for measurements and tests.

They are forked from a server that has imported torch once: importing it anew takes
seconds for each rank, and a fork of a process that has called backward may not call it
again. Training in earnest is started by torchrun (distributed/train.py).
"""

import datetime
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

# Imported once, by the server.
PRELOADED = ["torch.distributed", "scipy.sparse", "pandas"]


def run_on_ranks(
    function: Callable[..., Any],
    size: int,
    *arguments: Any,
    seconds: float = 60.0,  # without an answer, until ranks count as lost
) -> list[Any]:
    """What function(*arguments) returns on each rank of a gloo group, one thread each.

    The function must be importable by its name; what it returns goes through a file.

    Raises:
        RuntimeError: with the tracebacks of ranks that failed; none is left running.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        failed = _failed_ranks(function, size, folder, arguments, seconds)
        if failed:
            texts = [path.read_text("utf-8") for path in sorted(folder.glob("error*"))]
            raise RuntimeError(
                f"ranks {failed} of {size} failed or gave no answer within {seconds:g} "
                "seconds:\n" + "\n".join(texts)
            )
        return [
            torch.load(folder / f"result{rank}", weights_only=False)
            for rank in range(size)
        ]


def _failed_ranks(
    function: Callable[..., Any],
    size: int,
    folder: Path,
    arguments: tuple[Any, ...],
    seconds: float,
) -> list[int]:
    """Run all; those that failed first, or, where none answers, those that run on."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ranks = [
        context.Process(target=_run, args=(function, rank, size, folder, arguments))
        for rank in range(size)
    ]
    for one in ranks:
        one.start()
    failed: list[int] = []
    waiting = dict(enumerate(ranks))
    while waiting and not failed:
        ended = wait([one.sentinel for one in waiting.values()], timeout=seconds)
        done = [rank for rank, one in waiting.items() if one.sentinel in ended]
        failed = [rank for rank in done if ranks[rank].exitcode] or (
            [] if done else list(waiting)
        )
        waiting = {rank: one for rank, one in waiting.items() if rank not in done}
    for one in ranks:
        one.kill()
        one.join()
    return failed


def _run(
    function: Callable[..., Any],
    rank: int,
    size: int,
    folder: Path,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'rendezvous'}",
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=600),
        )
        torch.save(function(*arguments), folder / f"result{rank}")
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error{rank}").write_text(traceback.format_exc(), encoding="utf-8")
        raise SystemExit(1) from None
