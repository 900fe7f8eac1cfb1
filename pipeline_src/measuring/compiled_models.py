"""GraphSAGE compiled by torch.compile, with codes and without, side by side.

    python -m pipeline_src.measuring.compiled_models results/published/compiled.csv

The network is that of compressed_models.py's first row, on a graph of ogbn-arxiv's
shape, with the project's operator for means over neighbours, so that a step is one
graph for the compiler. The columns are those of that table, as well: "compressed" is
what compressed_backend made. Compilation is not timed: each side has taken a dozen
steps before. On one thread, so that equal forwards are equal to the bit.
"""

import argparse
import copy
import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_src.compression.config import CompressionConfig
from pipeline_src.compression.joint.backend import compressed_backend
from pipeline_src.gnn.pyg.aggregation import aggregation_of
from pipeline_src.gnn.pyg.operator import OperatorSage
from pipeline_src.gnn.pyg.technique import Technique
from pipeline_src.graphs.embedded import EMBEDDED_GRAPHS
from pipeline_src.measuring.compressed_models import STEPS_BEFORE, Side, compared
from pipeline_src.records.whole_files import write_whole

GRAPH = "arxiv_shape"
OPERATOR = "pipeline_src::aggregate"


class Sage(nn.Module):
    """GraphSAGE 3 x 128 with BatchNorm, ReLU and Dropout."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        widths = [num_features, 128, 128, num_classes]
        self.layers = nn.ModuleList(
            OperatorSage(*pair) for pair in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(128) for _ in widths[1:-1])

    def forward(self, x: Tensor, edges: tuple[Tensor, ...]) -> Tensor:
        """Logits, (num_nodes, num_classes)."""
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = functional.dropout(torch.relu(norm(layer(x, edges))), 0.5)
        logits: Tensor = self.layers[-1](x, edges)
        return logits


def compiled(model: nn.Module, backend: Any) -> Any:
    """One graph, of constant shapes."""
    return torch.compile(model, fullgraph=True, dynamic=False, backend=backend)


def measure(bits: int, steps: int, draws: int) -> dict[str, object]:
    """The row of a number of bits."""
    graph = EMBEDDED_GRAPHS[GRAPH]()
    edges = aggregation_of("sage", graph.adjacency, Technique("compiled")).edges
    torch.manual_seed(0)
    model = Sage(graph.features.shape[1], graph.num_classes).train()
    backend = compressed_backend(CompressionConfig(bits=bits), [OPERATOR])
    other = copy.deepcopy(model)
    plain = Side(compiled(model, "inductor"), graph, edges)
    coded = Side(compiled(other, backend), graph, edges)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(STEPS_BEFORE):
        optimizer.zero_grad()
        plain.step(step)
        optimizer.step()
    other.load_state_dict(model.state_dict())
    return {
        "network": "GraphSAGE 3 x 128, compiled",
        "graph": GRAPH,
        "bits": bits,
        **compared(plain, coded, steps, draws),
    }


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=5, help="timed, of each side")
    parser.add_argument("--draws", type=int, default=6, help="of rounding")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for bits in arguments.bits:
        rows.append(measure(bits, arguments.steps, arguments.draws))
        print(pd.Series(rows[-1]).to_string(), flush=True)
    write_whole(arguments.table, pd.DataFrame(rows).to_csv(index=False))


if __name__ == "__main__":
    main()
