"""One rank of a training, as torchrun starts it.

    torchrun --nproc-per-node 2 -m pipeline_src.distributed.train --graph GRAPH.npz
        --spec SPEC.json --wire-bits 2 --checkpoints FOLDER --every 10 --record OUT.json

SPEC.json holds what RunSpec.to_params gives. Under Slurm, srun starts a rank for each
task, and MASTER_ADDR and MASTER_PORT name the first. A rank that dies ends the others
with one line each; the same command then goes on from the last checkpoint. Rank 0
writes the record, JSON, once all seeds are trained.
"""

import argparse
import datetime
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed as dist

from pipeline_src.distributed.jobs.checkpoints import Checkpoints
from pipeline_src.distributed.partition import METHODS, partition
from pipeline_src.distributed.parts import GraphPart, cut
from pipeline_src.distributed.ranks import LostRankError, Ranks
from pipeline_src.distributed.runs import Curves, train_part
from pipeline_src.distributed.trainer import PartTrainer
from pipeline_src.distributed.wire import Wire
from pipeline_src.graphs.files import read_graph
from pipeline_src.records.devices import resolve_device
from pipeline_src.records.whole_files import write_whole
from pipeline_src.training.spec import RunSpec, resume_key


@dataclass(frozen=True)
class Place:
    """Which rank a process is, of how many, and on which device of its machine."""

    rank: int
    size: int
    local_rank: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Place":
        """As torchrun or srun have set it.

        Raises:
            ValueError: if neither has.
        """
        for names in (
            ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
            ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
        ):
            if all(name in environment for name in names):
                return cls(*(int(environment[name]) for name in names))
        raise ValueError(
            "no rank: expected RANK, WORLD_SIZE and LOCAL_RANK, or Slurm's; start it "
            "by torchrun --nproc-per-node N -m pipeline_src.distributed.train, or srun"
        )


@dataclass(frozen=True)
class Plan:
    """What is trained, on what, and where it is kept."""

    spec: RunSpec
    graph: Path
    partition: str  # one of METHODS
    wire_bits: int
    checkpoints: Path
    every: int  # epochs between two checkpoints
    record: Path

    def key(self, num_ranks: int) -> str:
        """Changes with all that changes a parameter."""
        return f"{resume_key(self.spec, [self.graph])}-{self.partition}-" + (
            f"{num_ranks}ranks-{self.wire_bits}bits"
        )


def train(plan: Plan, ranks: Ranks, device: torch.device) -> None:
    """Train all seeds; those that are finished are read from their checkpoints.

    Raises:
        LostRankError: if a rank is gone.
        FloatingPointError: if a number stops being finite.
    """
    wire = Wire(plan.wire_bits, plan.spec.compile)
    part = my_part(plan, ranks).to(device)
    found: dict[int, Curves] = {}
    for seed in plan.spec.seeds:
        trainer = PartTrainer(plan.spec, part, ranks, wire, seed)
        folder = plan.checkpoints / f"seed{seed}"
        checkpoints = Checkpoints(folder, plan.key(ranks.size), trainer, plan.every)
        before = checkpoints.resume()
        if before is not None and ranks.rank == 0:
            print(f"seed {seed}: goes on after epoch {len(before.losses)}", flush=True)
        found[seed] = train_part(trainer, before, checkpoints.after_epoch)
    sent = ranks.add_up(torch.tensor(trainer.step_bytes(), device=device))
    if ranks.rank == 0:
        write_whole(plan.record, _record(plan, ranks.size, int(sent), found))


def my_part(plan: Plan, ranks: Ranks) -> GraphPart:
    """The part of a rank, cut out of the whole graph."""
    graph = read_graph(plan.graph)
    owner = partition(graph.adjacency, ranks.size, plan.partition)
    for part in cut(graph, owner, ranks.size):
        if part.rank == ranks.rank:
            return part
    raise AssertionError("a partition has a part for each rank")


def _record(plan: Plan, size: int, sent: int, found: dict[int, Curves]) -> str:
    values = {
        "spec": json.loads(plan.spec.to_params()),
        "ranks": size,
        "partition": plan.partition,
        "wire_bits": plan.wire_bits,
        "bytes_exchanged_per_step": sent,
        "seeds": {
            seed: {
                "test_accuracy": curves.test_accuracy,
                "loss_curve": curves.losses.tolist(),
                "validation_accuracy_curve": curves.accuracies[:, 1].tolist(),
                "test_accuracy_curve": curves.accuracies[:, 2].tolist(),
            }
            for seed, curves in found.items()
        },
    }
    return json.dumps(values, indent=1, sort_keys=True) + "\n"


def read_plan(arguments: list[str]) -> Plan:
    """The command line's plan."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--partition", choices=METHODS, default="range")
    parser.add_argument("--wire-bits", type=int, default=32)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--every", type=int, default=10, help="epochs")
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(arguments)
    spec = RunSpec.from_params(
        given.spec.read_text(encoding="utf-8"), device=given.device
    )
    return Plan(
        spec,
        given.graph,
        given.partition,
        given.wire_bits,
        given.checkpoints,
        given.every,
        given.record,
    )


def main() -> None:
    """Be one rank."""
    plan = read_plan(sys.argv[1:])
    place = Place.from_environment(os.environ)
    device = resolve_device(plan.spec.device)
    if device.type == "cuda":
        device = torch.device("cuda", place.local_rank)
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)  # the number of threads changes the order of sums
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        rank=place.rank,
        world_size=place.size,
        timeout=datetime.timedelta(minutes=10),
    )
    try:
        train(plan, Ranks.joined(), device)
    except LostRankError as error:
        sys.exit(
            f"{error}\nThe training cannot go on without it. Run the same command "
            f"again: it goes on from the last checkpoint in {plan.checkpoints}."
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
