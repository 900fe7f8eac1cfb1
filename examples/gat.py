"""PyTorch Geometric's GAT on handwritten digits, compressed to two bits."""

import torch
from torch.nn.functional import cross_entropy
from torch_geometric.nn import GAT

from pipeline_src import compress, digits_graph, graph_data, memory_report


def main(epochs: int = 60) -> float:
    """Test accuracy."""
    torch.manual_seed(0)
    data = graph_data(digits_graph())  # a torch_geometric.data.Data: yours, here
    model = GAT(64, 32, num_layers=2, out_channels=10, heads=4, dropout=0.5)

    compress(model)

    print(memory_report(model, data.x, data.edge_index))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(epochs):
        optimizer.zero_grad()
        logits = model(data.x, data.edge_index)
        loss = cross_entropy(logits[data.train_mask], data.y[data.train_mask])
        loss.backward()
        optimizer.step()
        if (epoch + 1) % 20 == 0:
            print(f"epoch {epoch + 1}: loss {loss.detach():.3f}")
    model.eval()
    with torch.no_grad():
        right = model(data.x, data.edge_index).argmax(dim=1) == data.y
    accuracy = float(right[data.test_mask].float().mean())
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
