"""Whether batches are ready when a training step asks for them.

    python -m pipeline_src.measuring.loading results/published/loading.csv

On the graph of ogbn-arxiv's shape, for each loader a PyTorch Geometric network is
trained for the batches of one short epoch: the graph's parts are ten for each of them,
and seeds a thousand. What is written, per batch and as medians:

* how large batches are;
* seconds to make one in the process that trains, and of a step on it, exact and with
  `compress` at 2 bits: forward, loss, backward and Adam;
* with one worker process beside the training, seconds that it waits for a batch while
  exact steps run, and the longest such wait. The first batch, which nothing can be made
  ahead of, is left out of all of them.

Making a batch and steps on it take turns in one process, so that a busy machine slows
both. Set OMP_NUM_THREADS: a step gains from threads, making a batch does not.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

from pipeline_src.compression.attachment import compress
from pipeline_src.compression.config import CompressionConfig
from pipeline_src.graphs.embedded import EMBEDDED_GRAPHS
from pipeline_src.loading.batches import BatchLoader
from pipeline_src.loading.clusters import ClusterLoader, partition_graph
from pipeline_src.loading.inputs import graph_data
from pipeline_src.loading.neighbors import NeighborLoader
from pipeline_src.loading.saint import SaintNodeLoader, SaintWalkLoader
from pipeline_src.records.whole_files import write_whole

BITS = 2


@dataclass(frozen=True)
class Case:
    """A loader, and the widths of the network on its batches."""

    name: str
    make: Callable[..., BatchLoader]  # of a graph, batches in an epoch, and workers
    num_layers: int = 3
    width: int = 128

    def network(self, data: Data) -> nn.Module:
        """GraphSAGE with BatchNorm, ReLU and Dropout."""
        model: nn.Module = GraphSAGE(
            data.num_features,
            self.width,
            self.num_layers,
            int(data.y.max()) + 1,
            dropout=0.5,
            norm="batch",
        )
        return model


def _neighbors(fan_outs: list[int]) -> Callable[..., BatchLoader]:
    def make(data: Data, steps: int, **workers: Any) -> BatchLoader:
        seeds = data.train_mask.nonzero().flatten()[: steps * 1024]
        return NeighborLoader(data, fan_outs, seeds, 1024, shuffle=True, **workers)

    return make


def _drawn_nodes(data: Data, steps: int, **workers: Any) -> BatchLoader:
    return SaintNodeLoader(data, 20_000, steps, **workers)


def _walks(data: Data, steps: int, **workers: Any) -> BatchLoader:
    return SaintWalkLoader(data, 10_000, 3, steps, sample_coverage=1, **workers)


def _clusters(data: Data, steps: int, **workers: Any) -> BatchLoader:
    parts = partition_graph(data, 10 * steps)
    return ClusterLoader(data, parts, 10, shuffle=True, **workers)


CASES = (
    Case("NeighborLoader, 1,024 seeds, 10 and 10", _neighbors([10, 10]), 2),
    Case("NeighborLoader, 1,024 seeds, 15, 10 and 5", _neighbors([15, 10, 5])),
    Case("SaintNodeLoader, 20,000 draws", _drawn_nodes),
    Case("SaintWalkLoader, 10,000 roots, 3 steps", _walks, 3, 256),
    Case("ClusterLoader, 10 parts", _clusters),
)


def loss_of(model: nn.Module, batch: Data) -> Tensor:
    """Mean loss of the seeds, or of the training nodes of a subgraph."""
    logits = model(batch.x, batch.edge_index)
    rows = slice(batch.batch_size) if "batch_size" in batch else batch.train_mask
    return functional.cross_entropy(logits[rows], batch.y[rows])


class Trained:
    """A network and its optimiser."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def step(self, batch: Data) -> float:
        """Seconds of a step."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss_of(self.model, batch).backward()
        self.optimizer.step()
        return time.perf_counter() - start


def measure(case: Case, data: Data, steps: int) -> dict[str, object]:
    """A row of the table."""
    torch.manual_seed(0)
    model = case.network(data)
    compressed = compress(copy.deepcopy(model), CompressionConfig(bits=BITS))
    exact, ours = Trained(model), Trained(compressed)
    making, steps_exact, steps_ours, nodes, edges = [], [], [], [], []
    batches = iter(case.make(data, steps + 1))
    for _ in range(steps + 1):
        start = time.perf_counter()
        batch = next(batches)
        making.append(time.perf_counter() - start)
        steps_exact.append(exact.step(batch))
        steps_ours.append(ours.step(batch))
        nodes.append(batch.num_nodes)
        edges.append(batch.num_edges)
    waits = _waits(exact, case.make(data, steps + 1, num_workers=1))
    made, stepped, stepped_ours = (
        statistics.median(seconds[1:]) for seconds in (making, steps_exact, steps_ours)
    )
    return {
        "loader": case.name,
        "network": f"GraphSAGE {case.num_layers} x {case.width}",
        "nodes": int(statistics.median(nodes)),
        "edges": int(statistics.median(edges)),
        "batch [s]": round(made, 4),
        "step [s]": round(stepped, 4),
        f"step, {BITS} bits [s]": round(stepped_ours, 4),
        "batch / step": round(made / stepped, 3),
        "wait, one worker [s]": round(statistics.median(waits), 4),
        "longest wait [s]": round(max(waits), 4),
        "threads": torch.get_num_threads(),
    }


def _waits(trained: Trained, loader: BatchLoader) -> list[float]:
    """Seconds from asking for a batch to having it, but for the first."""
    waits = []
    batches = iter(loader)
    for _ in range(len(loader)):
        start = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - start)
        trained.step(batch)
    return waits[1:]


def main() -> None:
    """Measure every loader; rows are written as they are found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path)
    parser.add_argument("--graph", default="arxiv_shape", choices=EMBEDDED_GRAPHS)
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    data = graph_data(EMBEDDED_GRAPHS[arguments.graph]())
    rows = []
    for case in CASES:
        rows.append(measure(case, data, arguments.steps))
        print(pd.Series(rows[-1]).to_string(), flush=True)
        write_whole(arguments.table, pd.DataFrame(rows).to_csv(index=False))


if __name__ == "__main__":
    main()
