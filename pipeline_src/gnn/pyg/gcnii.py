"""GCNII (Chen et al. 2020, arXiv 2007.02133), a layer of which PyTorch Geometric has.

A linear layer makes H0; each of `num_layers` layers is PyTorch Geometric's GCN2Conv,

    H' = ((1 - a) P H + a H0) ((1 - b) I + b W),    b = log(theta / l + 1) for layer l,

with BatchNorm and ReLU behind it and Dropout before it; a linear layer gives logits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import GCN2Conv


class GCNII(nn.Module):
    """As a class of a configuration: made with widths, called with (x, edge_index)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        num_layers: int,
        alpha: float,
        theta: float,
        dropout: float,
    ) -> None:
        """Build with parameters drawn from torch's global generator."""
        super().__init__()
        self.dropout = dropout
        self.first = nn.Linear(in_channels, hidden_channels)
        self.convolutions = nn.ModuleList(
            GCN2Conv(hidden_channels, alpha, theta, layer, shared_weights=True)
            for layer in range(1, num_layers + 1)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(hidden_channels) for _ in range(num_layers)
        )
        self.last = nn.Linear(hidden_channels, out_channels)

    def forward(
        self,
        x: Tensor,  # (num_nodes, in_channels) float32
        edge_index: Tensor,  # (2, num_edges) int64, or sparse, row by receiver
    ) -> Tensor:
        """Logits, (num_nodes, out_channels)."""
        x = first = torch.relu(self.first(self._drop(x)))
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = torch.relu(norm(convolution(self._drop(x), first, edge_index)))
        return self.last(self._drop(x))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)
