"""Link prediction: PyTorch Geometric's graph autoencoder with a compressed encoder."""

import torch
from torch_geometric.nn import GAE, GCN
from torch_geometric.transforms import RandomLinkSplit

from pipeline_src import CompressionConfig, compress, digits_graph, graph_data


def main(epochs: int = 60) -> float:
    """Area under the curve, on edges that were held back."""
    torch.manual_seed(0)
    split = RandomLinkSplit(is_undirected=True, add_negative_train_samples=False)
    train, _, test = split(graph_data(digits_graph()))
    model = GAE(GCN(64, 64, num_layers=2, out_channels=32, norm="batch"))

    compress(model.encoder, CompressionConfig(bits=2))

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    positive = train.edge_label_index
    for _ in range(epochs):
        model.train()
        optimizer.zero_grad()
        model.recon_loss(model.encode(train.x, train.edge_index), positive).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        z = model.encode(test.x, test.edge_index)
    real = test.edge_label == 1
    area, _ = model.test(
        z, test.edge_label_index[:, real], test.edge_label_index[:, ~real]
    )
    print(f"area under the curve {area:.3f}")
    return float(area)


if __name__ == "__main__":
    main()
