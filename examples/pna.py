"""PNA on handwritten digits: convolutions keep their input and run again in backward.

PNA takes deviations of messages, which no code can stand for, and makes far more values
than it is given. So its convolutions are computed again; what is between them is coded.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch_geometric.nn import PNA, PNAConv
from torch_geometric.utils import degree

from pipeline_src import (
    CompressionConfig,
    Part,
    Recompute,
    compress,
    digits_graph,
    graph_data,
    memory_report,
)


def main(epochs: int = 40) -> float:
    """Test accuracy."""
    torch.manual_seed(0)
    data = graph_data(digits_graph())
    model = PNA(
        *(64, 32, 2, 10),
        norm="batch",
        aggregators=["mean", "min", "max", "std"],
        scalers=["identity", "amplification", "attenuation"],
        deg=degree(data.edge_index[1], dtype=torch.long).bincount(),
    )

    compress(model, CompressionConfig(choices=((Part(type=PNAConv), Recompute()),)))

    print(memory_report(model, data.x, data.edge_index))
    return train(model, data, epochs)


def train(model: nn.Module, data, epochs: int) -> float:
    """As without compression; test accuracy at the end."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        model.train()
        optimizer.zero_grad()
        logits = model(data.x, data.edge_index)
        cross_entropy(logits[data.train_mask], data.y[data.train_mask]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(data.x, data.edge_index).argmax(dim=1) == data.y
    accuracy = float(right[data.test_mask].float().mean())
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
