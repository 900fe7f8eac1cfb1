"""PyTorch Geometric's networks as they are, compressed and not, side by side.

    python -m pipeline_src.measuring.compressed_models results/published/compress.csv

Each row is one network on a graph of ogbn-arxiv's shape (smaller where the unconverted
network would not fit this machine), as edges or as a sparse matrix. The two sides are
copies of one network with the same parameters and the same Dropout; they take turns,
step by step, in one process. What is written:

* bytes kept for backward, after forward and without the output; the most that is alive
  during a step; both above model, graph and gradients of parameters;
* seconds of a step, medians;
* the squared error of the compressed gradient over that of the exact one, at parameters
  after a few exact steps, split into bias and variance (measuring/gradient_error.py).

A network that does not fit, or fails, leaves a row that says so. Rows are written as
they are found, and rows that are there are not measured again.
"""

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.utils import to_torch_csr_tensor

from pipeline_src.compression.attachment import compress
from pipeline_src.compression.config import (
    Choice,
    CompressionConfig,
    Part,
    Recompute,
)
from pipeline_src.graphs.embedded import EMBEDDED_GRAPHS
from pipeline_src.graphs.graph import Graph
from pipeline_src.measuring.gradient_error import split_error
from pipeline_src.records.whole_files import write_whole
from pipeline_src.training.meters import measure_memory

STEPS_BEFORE = 5
CPU = torch.device("cpu")
MIB = 2**20


class Layers(nn.Module):
    """Convolutions with BatchNorm, ReLU and Dropout between them."""

    def __init__(self, convolutions: list[nn.Module], width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(convolutions)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in convolutions[1:])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits, (num_nodes, num_classes)."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=False):
            x = functional.relu(norm(convolution(x, edge_index)))
            x = functional.dropout(x, 0.5, self.training)
        logits: Tensor = self.convolutions[-1](x, edge_index)
        return logits


class Gcn2(nn.Module):
    """GCNII (Chen et al. 2020), 8 layers of 128."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(num_inputs, 128), nn.Linear(128, num_outputs)
        self.layers = nn.ModuleList(
            pyg.GCN2Conv(128, 0.1, 0.5, layer + 1, normalize=False)
            for layer in range(8)
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits, (num_nodes, num_classes)."""
        x = first = self.enter(x).relu()
        for layer in self.layers:
            x = functional.dropout(x, 0.5, self.training)
            x = layer(x, first, edge_index).relu()
        logits: Tensor = self.leave(x)
        return logits


class Deep(nn.Module):
    """DeepGCN (Li et al. 2020), 28 layers of 64."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(num_inputs, 64), nn.Linear(64, num_outputs)
        self.layers = nn.ModuleList(
            pyg.DeepGCNLayer(
                pyg.GENConv(64, 64, num_layers=2, norm="layer"),
                nn.LayerNorm(64),
                nn.ReLU(),
                dropout=0.1,
            )
            for _ in range(28)
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits, (num_nodes, num_classes)."""
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x, edge_index)
        logits: Tensor = self.leave(x)
        return logits


Make = Callable[[int, int, Tensor], nn.Module]  # widths, in-degrees


@dataclass(frozen=True)
class Case:
    """A network and what it runs on."""

    name: str
    graph: str  # of EMBEDDED_GRAPHS
    as_matrix: bool
    make: Make
    normalized: bool = False  # the matrix is GCN's, with loops
    choices: tuple[tuple[Part, Choice], ...] = ()

    @property
    def key(self) -> str:
        """Of its row."""
        return f"{self.name}, {'matrix' if self.as_matrix else 'edges'}"


def _heads(conv: Callable[..., nn.Module]) -> Make:
    """Three layers of 8 heads with 16 features each; the last averages heads."""
    return lambda num_inputs, num_outputs, _: Layers(
        [
            conv(num_inputs, 16, heads=8),
            conv(128, 16, heads=8),
            conv(128, num_outputs, heads=8, concat=False),
        ],
        128,
    )


def _pna(num_inputs: int, num_outputs: int, degrees: Tensor) -> nn.Module:
    def conv(width: int, out: int) -> nn.Module:
        aggregators = ["mean", "min", "max", "std"]
        scalers = ["identity", "amplification", "attenuation"]
        return pyg.PNAConv(width, out, aggregators, scalers, torch.bincount(degrees))

    return Layers([conv(num_inputs, 64), conv(64, 64), conv(64, num_outputs)], 64)


def _basic(model: type[nn.Module], **arguments: object) -> Make:
    return lambda num_inputs, num_outputs, _: model(
        in_channels=num_inputs,
        hidden_channels=128,
        num_layers=3,
        out_channels=num_outputs,
        dropout=0.5,
        norm="batch",
        **arguments,
    )


CASES = (
    Case("GraphSAGE 3 x 128", "arxiv_shape", True, _basic(pyg.GraphSAGE)),
    Case("GraphSAGE 3 x 128", "arxiv_shape", False, _basic(pyg.GraphSAGE)),
    Case("GCN 3 x 128", "arxiv_shape", True, _basic(pyg.GCN, normalize=False), True),
    Case("GIN 3 x 128", "arxiv_shape", True, _basic(pyg.GIN)),
    Case("GCNII 8 x 128", "arxiv_shape", True, lambda i, o, _: Gcn2(i, o), True),
    Case("GAT 3 layers, 8 x 16", "nodes_30k", False, _heads(pyg.GATConv)),
    Case("GATv2 3 layers, 8 x 16", "nodes_30k", False, _heads(pyg.GATv2Conv)),
    Case(
        "TransformerConv 3 layers, 8 x 16",
        "nodes_30k",
        False,
        _heads(pyg.TransformerConv),
    ),
    Case("PNA 3 x 64", "nodes_10k", False, _pna),
    Case(
        "PNA 3 x 64, convolutions recomputed",
        "nodes_10k",
        False,
        _pna,
        choices=((Part(type=pyg.PNAConv), Recompute()),),
    ),
    Case("DeepGCN 28 x 64", "nodes_10k", False, lambda i, o, _: Deep(i, o)),
)


def input_of(graph: Graph, case: Case) -> Tensor:
    """Edges, (2, num_edges) from sender to receiver, or a matrix by receivers."""
    adjacency = graph.adjacency
    counts = adjacency.row_pointer.diff().long()
    receivers = torch.arange(adjacency.num_nodes).repeat_interleave(counts)
    edges = torch.stack([adjacency.column.long(), receivers])
    if not case.as_matrix:
        return edges
    size = (adjacency.num_nodes, adjacency.num_nodes)
    weights = None
    if case.normalized:
        edges, weights = pyg.conv.gcn_conv.gcn_norm(edges, num_nodes=size[0])
    return to_torch_csr_tensor(edges.flip(0), weights, size=size)


class Side:
    """One of the two copies."""

    def __init__(self, model: nn.Module, graph: Graph, edges: Any) -> None:
        self.model, self.graph, self.edges = model, graph, edges
        self.seconds: list[float] = []

    def forward(self, seed: int) -> Tensor:
        """Logits, with Dropout drawn from a seed."""
        torch.manual_seed(seed)
        logits: Tensor = self.model(self.graph.features, self.edges)
        return logits

    def step(self, seed: int) -> None:
        """Gradients of all parameters."""
        rows = self.graph.train_index
        logits = self.forward(seed)
        loss = functional.cross_entropy(logits[rows], self.graph.labels[rows])
        loss.backward()

    def gradient(self, seed: int) -> Tensor:
        """All gradients in a row."""
        self.model.zero_grad(set_to_none=True)
        self.step(seed)
        found = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.cat([one.flatten() for one in found])

    def timed_step(self, seed: int) -> None:
        """A step on the clock."""
        self.model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        self.step(seed)
        self.seconds.append(time.perf_counter() - start)

    def memory(self) -> tuple[float, float]:
        """Saved and peak, MiB."""
        logits, forward = measure_memory(lambda: self.forward(0), CPU)
        saved = forward.held - logits.nbytes
        del logits
        self.model.zero_grad(set_to_none=False)
        _, step = measure_memory(lambda: self.step(0), CPU)
        return saved / MIB, step.peak / MIB


def measure(case: Case, bits: int, steps: int, draws: int) -> dict[str, object]:
    """A row of the table."""
    graph = EMBEDDED_GRAPHS[case.graph]()
    edges = input_of(graph, case)
    torch.manual_seed(0)
    degrees = graph.adjacency.degree.long()
    model = case.make(graph.features.shape[1], graph.num_classes, degrees)
    eager = Side(model.train(), graph, edges)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(STEPS_BEFORE):
        optimizer.zero_grad()
        eager.step(step)
        optimizer.step()
    del optimizer
    config = CompressionConfig(bits=bits, choices=case.choices)
    ours = Side(compress(copy.deepcopy(model), config), graph, edges)
    return {
        "network": case.name,
        "input": "matrix" if case.as_matrix else "edges",
        "graph": case.graph,
        "bits": bits,
        **compared(eager, ours, steps, draws),
    }


def compared(eager: Side, ours: Side, steps: int, draws: int) -> dict[str, object]:
    """What a row says of the two sides, which take turns."""
    equal = torch.equal(eager.forward(1), ours.forward(1))
    exact, found = [], []
    for draw in range(draws):
        exact.append(eager.gradient(draw))
        found.append(ours.gradient(draw))
    error = split_error(torch.stack(found), torch.stack(exact))
    for step in range(steps):
        for side in (eager, ours):
            side.timed_step(step)
    saved, peak = eager.memory()
    saved_ours, peak_ours = ours.memory()
    medians = [statistics.median(side.seconds) for side in (eager, ours)]
    return {
        "forward equal": equal,
        "saved [MiB]": round(saved, 2),
        "saved, compressed [MiB]": round(saved_ours, 2),
        "share": round(saved_ours / saved, 4),
        "peak [MiB]": round(peak, 1),
        "peak, compressed [MiB]": round(peak_ours, 1),
        "peak ratio": round(peak_ours / peak, 3),
        "step [s]": round(medians[0], 3),
        "step, compressed [s]": round(medians[1], 3),
        "time ratio": round(medians[1] / medians[0], 3),
        "squared gradient error": f"{error.total:.1e}",
        "squared bias": f"{error.bias:.1e}",
        "± standard error": f"{error.bias_standard_error:.1e}",
    }


def main() -> None:
    """Measure what the table does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--only", default="", help="part of a network's name")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="timed, of each side")
    parser.add_argument("--draws", type=int, default=6, help="of rounding")
    arguments = parser.parse_args()
    table = pd.read_csv(arguments.table) if arguments.table.exists() else pd.DataFrame()
    for case in CASES:
        if arguments.only not in case.key or _has(table, case, arguments.bits):
            continue
        print(case.key, flush=True)
        row = measure(case, arguments.bits, arguments.steps, arguments.draws)
        table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
        write_whole(arguments.table, table.to_csv(index=False))
        print(table.iloc[-1].to_string(), flush=True)
        gc.collect()


def _has(table: pd.DataFrame, case: Case, bits: int) -> bool:
    if table.empty:
        return False
    form = "matrix" if case.as_matrix else "edges"
    same = (table["network"] == case.name) & (table["input"] == form)
    return bool((same & (table["bits"] == bits)).any())


if __name__ == "__main__":
    main()
