"""GCNII by its formula, through matrices that are written out."""

import math

import torch

from pipeline_src.gnn.pyg.gcnii import GCNII


def test_layers_follow_the_formula():
    torch.manual_seed(0)
    model = GCNII(
        5, 3, hidden_channels=4, num_layers=2, alpha=0.1, theta=0.5, dropout=0.5
    )
    model = model.double().eval()
    edges = torch.tensor([[0, 1, 1, 2, 3], [1, 0, 2, 1, 2]])  # 3 hears from nobody
    adjacency = torch.eye(4, dtype=torch.float64)
    adjacency[edges[1], edges[0]] = 1
    root = adjacency.sum(dim=1).rsqrt()
    p = root[:, None] * adjacency * root
    x = torch.randn(4, 5, dtype=torch.float64)
    h = h0 = torch.relu(x @ model.first.weight.T + model.first.bias)
    for layer, (convolution, norm) in enumerate(
        zip(model.convolutions, model.norms, strict=True), start=1
    ):
        b = math.log(0.5 / layer + 1)
        mixed = 0.9 * p @ h + 0.1 * h0
        y = (1 - b) * mixed + b * mixed @ convolution.weight1
        h = torch.relu(y / math.sqrt(1 + norm.eps))  # statistics of a new BatchNorm
    expected = h @ model.last.weight.T + model.last.bias
    torch.testing.assert_close(model(x, edges), expected)
