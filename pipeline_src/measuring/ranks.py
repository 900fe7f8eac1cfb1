"""Training by 1, 2 and 4 processes of this machine: bytes sent, memory, loss, accuracy.

    python -m pipeline_src.measuring.ranks costs results/published/ranks.csv
    python -m pipeline_src.measuring.ranks accuracy results/published/ranks_accuracy.csv

`costs` trains GraphSAGE, 3 layers of 128, on a synthetic graph (nodes_30k: ogbn-arxiv's
mean degree and widths with 30,000 nodes) without Dropout, so that the loss can be
compared with that of one process. Bytes are those handed to the process group by all
ranks in one training step; memory is the largest of the ranks, above the part, the
network and the aggregation of features. Ranks are processes with
one thread each, which share the machine's cores: seconds tell nothing of a machine with
a core for each.

`accuracy` trains the default configuration's network on digits in two parts, with ten
seeds. Without Dropout a seed changes parameters and the rounding of the wire; with it,
what is dropped as well.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pipeline_src.distributed.jobs.local import run_on_ranks
from pipeline_src.distributed.partition import cut_edges, partition
from pipeline_src.distributed.parts import GraphPart, cut
from pipeline_src.distributed.ranks import Ranks
from pipeline_src.distributed.runs import train_part
from pipeline_src.distributed.trainer import PartTrainer
from pipeline_src.distributed.wire import Wire
from pipeline_src.graphs.embedded import EMBEDDED_GRAPHS
from pipeline_src.graphs.graph import Graph
from pipeline_src.records.whole_files import write_whole
from pipeline_src.training.meters import measure_memory
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec

MIB = 2**20
GRAPH = "nodes_30k"
COSTS = [(1, "range", 32)] + [
    (size, method, bits)
    for size in (2, 4)
    for method in ("range", "metis")
    for bits in (32, 2)
]
WIRES = (32, 2, 1)
SEEDS = 10
SECONDS = 600.0  # of one training on a busy machine, at most


class Silent(Ranks):
    """Sends nothing and receives zeros, to measure memory by.

    A message that was sent may be released by a thread of the process group, which the
    profiler does not see: it would count as never released.
    """

    def add_up(self, x: Tensor) -> Tensor:
        """What this rank gave."""
        return x

    def exchange(
        self, rows: Tensor, num_sent: Sequence[int], num_received: Sequence[int]
    ) -> Tensor:
        """As much as the others would have sent."""
        return rows.new_zeros((sum(num_received), rows.shape[1]))


def costs_spec(epochs: int) -> RunSpec:
    """GraphSAGE, 3 layers of 128, which keeps what PyTorch keeps."""
    model = ModelSpec("sage-3x128", "sage", 3, 128, 0.0, True)
    training = TrainingSpec(epochs, 0.01, 0.0, 0.5, "cross_entropy")
    full = MethodSpec("full", "FP32", "full")
    return RunSpec(GRAPH, model, full, training, (0,), "cpu", "false")


def accuracy_spec() -> RunSpec:
    """The default configuration's network on digits."""
    model = ModelSpec("sage-2x64", "sage", 2, 64, 0.5, True)
    training = TrainingSpec(60, 0.01, 0.0, 0.5, "cross_entropy")
    full = MethodSpec("full", "FP32", "full")
    return RunSpec("digits", model, full, training, (0,), "cpu", "false")


def measure_rank(spec: RunSpec, part: list[GraphPart], bits: int) -> dict[str, Any]:
    """What one rank sends, needs and finds; every rank runs it."""
    ranks = Ranks.joined()
    # Kernels are compiled in the first step, which medians leave out.
    trainer = PartTrainer(spec, part[ranks.rank], ranks, Wire(bits), 0)
    once = ranks.bytes_exchanged  # GraphSAGE's features
    ranks.bytes_exchanged = ranks.bytes_added_up = 0
    losses, seconds = [], []
    for epoch in range(spec.training.epochs):
        start = time.perf_counter()
        losses.append(float(trainer.step(epoch)))
        seconds.append(time.perf_counter() - start)
    exchanged, added_up = ranks.bytes_exchanged, ranks.bytes_added_up
    silent = Silent(ranks.rank, ranks.size)
    trainer = PartTrainer(spec, trainer.part, silent, trainer.halo.wire, 0)
    trainer.step(0)
    trainer.optimizer.zero_grad()  # what a call releases, it must have allocated
    _, memory = measure_memory(lambda: trainer.step(1), trainer.device)
    epochs = spec.training.epochs
    return {
        "losses": losses,
        "seconds": statistics.median(seconds),
        "once": once,
        "exchanged": exchanged / epochs,
        "added_up": added_up / epochs,
        "peak": memory.peak,
    }


def measure_costs(epochs: int) -> Iterator[dict[str, Any]]:
    """A row for each number of ranks, partition and wire."""
    graph, spec = EMBEDDED_GRAPHS[GRAPH](), costs_spec(epochs)
    alone: list[float] = []
    for size, method, bits in COSTS:
        owner = partition(graph.adjacency, size, method)
        parts = list(cut(graph, owner, size))
        found = run_on_ranks(measure_rank, size, spec, parts, bits, seconds=SECONDS)
        losses = found[0]["losses"]
        alone = alone or losses
        yield {
            "graph": GRAPH,
            "ranks": size,
            "partition": method if size > 1 else "none",
            "wire [bits]": bits,
            "edges cut": round(cut_edges(graph.adjacency, owner) / _edges(graph), 3),
            "halo rows per node": round(
                sum(part.num_halo for part in parts) / graph.num_nodes, 3
            ),
            "rows sent [MiB]": round(sum(one["exchanged"] for one in found) / MIB, 3),
            "features sent once [MiB]": round(
                sum(one["once"] for one in found) / MIB, 3
            ),
            "sums sent [MiB]": round(sum(one["added_up"] for one in found) / MIB, 3),
            "peak of a rank [MiB]": round(max(one["peak"] for one in found) / MIB, 1),
            "step [s]": round(max(one["seconds"] for one in found), 3),
            "steps": epochs,
            "last loss": round(losses[-1], 6),
            "first loss, relative difference": _difference(losses[0], alone[0]),
            "last loss, relative difference": _difference(losses[-1], alone[-1]),
        }


def train_rank(spec: RunSpec, parts: list[GraphPart], bits: int) -> list[float]:
    """Test accuracy of each seed; every rank runs it."""
    ranks = Ranks.joined()
    part, wire = parts[ranks.rank], Wire(bits, "false")
    return [
        train_part(PartTrainer(spec, part, ranks, wire, seed)).test_accuracy
        for seed in range(SEEDS)
    ]


def measure_accuracy() -> Iterator[dict[str, Any]]:
    """A row for each wire, with differences from float32 seed by seed."""
    spec, size = accuracy_spec(), 2
    graph = EMBEDDED_GRAPHS[spec.graph]()
    owner = partition(graph.adjacency, size, "range")
    parts = list(cut(graph, owner, size))
    whole: Tensor | None = None
    for bits in WIRES:
        found = run_on_ranks(train_rank, size, spec, parts, bits, seconds=SECONDS)
        accuracy = 100 * torch.tensor(found[0], dtype=torch.float64)
        whole = accuracy if whole is None else whole
        difference = accuracy - whole
        yield {
            "graph": spec.graph,
            "ranks": size,
            "wire [bits]": bits,
            "bytes of a row of 64": Wire(bits).row_bytes(64),
            "seeds": SEEDS,
            "test accuracy [%]": round(float(accuracy.mean()), 2),
            "± standard deviation": round(float(accuracy.std()), 2),
            "difference from 32 bits": round(float(difference.mean()), 2),
            "± standard error": round(float(difference.std() / SEEDS**0.5), 2),
        }


def main() -> None:
    """Write one of the two tables, anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["costs", "accuracy"])
    parser.add_argument("table", type=Path)
    parser.add_argument("--epochs", type=int, default=10, help="of costs")
    arguments = parser.parse_args()
    costs = arguments.what == "costs"
    rows = measure_costs(arguments.epochs) if costs else measure_accuracy()
    table: list[dict[str, Any]] = []
    for row in rows:
        table.append(row)
        print(row, flush=True)
    write_whole(arguments.table, pd.DataFrame(table).to_csv(index=False))


def _edges(graph: Graph) -> int:
    return graph.adjacency.num_entries


def _difference(found: float, expected: float) -> str:
    return f"{abs(found - expected) / abs(expected):.1e}"


if __name__ == "__main__":
    main()
