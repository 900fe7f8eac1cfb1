"""All ranks of a training at once, and one message where one of them dies."""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline_src.distributed import train
from pipeline_src.records.whole_files import write_whole

SPEC = "spec.json"
_PORT = 29_400  # torchrun's own default

log = logging.getLogger(__name__)


def start_command(plan: train.Plan, num_ranks: int, mpi: str = "") -> list[str]:
    """The command that starts the ranks.

    Args:
        plan: what is trained; its specification lies beside the checkpoints.
        num_ranks: processes.
        mpi: the command that starts a process for each task, as "srun"; empty for
            torchrun, which starts them on this machine.
    """
    if mpi:
        start = [*mpi.split(), f"--ntasks={num_ranks}", sys.executable, "-m"]
    else:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start += [f"--nproc-per-node={num_ranks}", "-m"]
    return [
        *start,
        train.__name__,
        *("--graph", str(plan.graph)),
        *("--spec", str(plan.checkpoints / SPEC)),
        *("--partition", plan.partition),
        *("--wire-bits", str(plan.wire_bits)),
        *("--checkpoints", str(plan.checkpoints)),
        *("--every", str(plan.every)),
        *("--record", str(plan.record)),
        *("--device", plan.spec.device),
    ]


def launch(plan: train.Plan, num_ranks: int, mpi: str = "") -> None:
    """Train, and come back when the record is there.

    Raises:
        RuntimeError: if a rank died or refused; the same call goes on from the last
            checkpoint.
    """
    write_whole(plan.checkpoints / SPEC, plan.spec.to_params())
    process = subprocess.Popen(
        start_command(plan, num_ranks, mpi),
        env=_environment(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None, "it is a pipe"
    with process:
        for line in process.stdout:
            log.info("%s", line.rstrip())
    if process.returncode:
        raise RuntimeError(
            f"a rank of {num_ranks} died or refused to go on (see its last lines "
            "above). Run the same command again: it goes on from the last checkpoint "
            f"in {plan.checkpoints}"
        )


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Ours, in which the ranks find this library and each other."""
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [root, ours.get("PYTHONPATH", "")]))
    meeting = {
        # Of the batch script's node, where srun puts the first rank.
        "MASTER_ADDR": ours.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"),
        "MASTER_PORT": str(_PORT),
        "OMP_NUM_THREADS": "1",
    }
    return {**meeting, **ours, "PYTHONPATH": path}
