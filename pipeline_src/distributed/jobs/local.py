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
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils._pytree import tree_map_only

_GRACE = 1.0  # seconds for the others, once one has failed
# Imported once, by the server.
PRELOADED = ["torch.distributed", "scipy.sparse", "pandas"]


def run_on_ranks(
    function: Callable[..., Any],
    size: int,
    *arguments: Any,
    seconds: float = 60.0,  # without an answer, until ranks count as lost
) -> list[Any]:
    """What function(*arguments) returns on each rank of a gloo group, one thread each.

    The function must be importable by its name; tensors in what it returns are copied.

    Raises:
        RuntimeError: with the tracebacks of ranks that failed; none is left running.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    processes, answers = [], []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            given = (theirs, function, rank, size, folder, arguments)
            process = context.Process(target=_run, args=given)
            process.start()
            theirs.close()  # so that its end is noticed
            processes.append(process)
            answers.append(ours)
        try:
            found = _answers(answers, seconds)
        finally:
            for process in processes:
                process.kill()
                process.join()
    errors = {rank: error for rank, (error, _) in found.items() if error is not None}
    if errors:
        texts = "\n".join(errors.values())
        raise RuntimeError(f"ranks {sorted(errors)} of {size} failed:\n{texts}")
    if silent := [rank for rank in range(size) if rank not in found]:
        raise RuntimeError(
            f"ranks {silent} of {size} gave no answer within {seconds:g} seconds; give "
            "them more, or look for one that waits for another"
        )
    return [
        tree_map_only(np.ndarray, torch.from_numpy, found[rank][1])
        for rank in range(size)
    ]


def _answers(
    connections: list[Connection], seconds: float
) -> dict[int, tuple[str | None, Any]]:
    """(traceback, result) of ranks, until one failed or none answers."""
    found: dict[int, tuple[str | None, Any]] = {}
    waiting: dict[Any, int] = {one: rank for rank, one in enumerate(connections)}
    while ready := wait(list(waiting), timeout=seconds) if waiting else []:
        for one in ready:
            rank = waiting.pop(one)
            try:
                found[rank] = connections[rank].recv()
            except EOFError:
                found[rank] = (f"rank {rank} died", None)
        if any(error is not None for error, _ in found.values()):
            seconds = min(seconds, _GRACE)  # the others' errors may tell more
    return found


def _run(
    answer: Connection,
    function: Callable[..., Any],
    rank: int,
    size: int,
    folder: str,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(minutes=10),
        )
        result = function(*arguments)
        # Arrays, because a tensor would be shared with a process that ends.
        result = tree_map_only(Tensor, lambda one: one.detach().numpy(), result)
        dist.destroy_process_group()
        answer.send((None, result))
    except Exception:
        answer.send((traceback.format_exc(), None))
