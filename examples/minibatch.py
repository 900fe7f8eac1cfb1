"""Train a GraphSAGE of PyTorch Geometric in mini-batches, on compressed activations.

    python examples/minibatch.py

The graph is scikit-learn's digits, which needs no network; it takes seconds.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

from pipeline_src import (
    CompressionConfig,
    NeighborLoader,
    compress,
    digits_graph,
    graph_data,
)


def train_epoch(
    model: nn.Module, loader: NeighborLoader, optimizer: torch.optim.Optimizer
) -> float:
    """One pass over the training nodes; their mean loss."""
    model.train()
    total, count = 0.0, 0
    for batch in loader:
        optimizer.zero_grad()
        seeds = batch.batch_size  # the first nodes of the batch; the others inform them
        logits = model(batch.x, batch.edge_index)[:seeds]
        loss = cross_entropy(logits, batch.y[:seeds])
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * seeds
        count += seeds
    return total / count


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, mask: Tensor) -> float:
    """Share of nodes told right, with all neighbours of each."""
    model.eval()
    predicted = model(data.x, data.edge_index).argmax(dim=1)
    return float((predicted == data.y)[mask].float().mean())


def main(num_epochs: int = 15) -> tuple[list[float], float]:
    """Losses of the epochs, and the accuracy on test nodes."""
    torch.manual_seed(0)
    data = graph_data(digits_graph())
    loader = NeighborLoader(
        data, [10, 5], data.train_mask, batch_size=128, shuffle=True, num_workers=1
    )
    model = GraphSAGE(64, 64, num_layers=2, out_channels=10, dropout=0.5)
    compress(model, CompressionConfig(bits=2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for epoch in range(num_epochs):
        losses.append(train_epoch(model, loader, optimizer))
        print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    found = accuracy(model, data, data.test_mask)
    print(f"test accuracy {found:.3f}")
    return losses, found


if __name__ == "__main__":
    main()
