"""A model of two node types, made by to_hetero, compressed to two bits.

Made-up authors write made-up papers; a paper's class is that of most of its authors.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_geometric.data import HeteroData
from torch_geometric.nn import SAGEConv, to_hetero

from pipeline_src import CompressionConfig, compress

PAPERS, AUTHORS, CLASSES = 2000, 600, 4


class Net(nn.Module):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SAGEConv((-1, -1), 64)
        self.last = SAGEConv((-1, -1), CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits, (num_nodes, CLASSES)."""
        return self.last(self.first(x, edge_index).relu(), edge_index)


def made_up() -> HeteroData:
    """Features of authors tell their field; those of papers are noise."""
    fields = torch.randint(CLASSES, (AUTHORS,))
    written = torch.randint(AUTHORS, (PAPERS, 3))
    data = HeteroData()
    data["author"].x = torch.eye(CLASSES)[fields] + 0.5 * torch.randn(AUTHORS, CLASSES)
    data["paper"].x = torch.randn(PAPERS, 8)
    data["paper"].y = torch.eye(CLASSES)[fields[written]].sum(dim=1).argmax(dim=1)
    papers = torch.arange(PAPERS).repeat_interleave(3)
    data["author", "writes", "paper"].edge_index = torch.stack(
        [written.flatten(), papers]
    )
    data["paper", "by", "author"].edge_index = torch.stack([papers, written.flatten()])
    return data


def main(epochs: int = 60) -> float:
    """Accuracy on the second half of the papers."""
    torch.manual_seed(0)
    data = made_up()
    model = to_hetero(Net(), data.metadata())
    with torch.no_grad():
        model(data.x_dict, data.edge_index_dict)  # finds the widths

    compress(model, CompressionConfig(bits=2))

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    half = PAPERS // 2
    for _ in range(epochs):
        optimizer.zero_grad()
        logits = model(data.x_dict, data.edge_index_dict)["paper"]
        cross_entropy(logits[:half], data["paper"].y[:half]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        logits = model(data.x_dict, data.edge_index_dict)["paper"]
    right = logits.argmax(dim=1) == data["paper"].y
    accuracy = float(right[half:].float().mean())
    print(f"accuracy on papers that were not trained on: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
