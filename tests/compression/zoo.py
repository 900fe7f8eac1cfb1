"""PyTorch Geometric's own layers, in small networks, for the tests beside this file."""

from collections.abc import Callable

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.utils import to_torch_csr_tensor

NODES, FEATURES, HIDDEN, CLASSES = 120, 10, 16, 5


def edges() -> Tensor:
    """Unsorted, with loops, duplicates, a hub, and nodes without any."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(NODES - 10, (2, 480), generator=generator)
    index[1, :60] = 7
    loops = torch.arange(0, 20, 5).repeat(2, 1)
    return torch.cat([index, loops, index[:, 100:110]], dim=1)


def adjacency() -> Tensor:
    """The same as a sparse CSR matrix, row by receiver."""
    return to_torch_csr_tensor(edges().flip(0), size=(NODES, NODES))


def features() -> Tensor:
    return torch.randn(NODES, FEATURES, generator=torch.Generator().manual_seed(1))


def labels() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(CLASSES, (NODES,), generator=generator)


class Stack(nn.Module):
    """Convolution, norm, activation, Dropout, convolution."""

    def __init__(
        self,
        conv: Callable[[int, int], nn.Module],
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm1d,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.first, self.last = conv(FEATURES, HIDDEN), conv(HIDDEN, CLASSES)
        self.norm = norm(HIDDEN) if norm else nn.Identity()
        self.act = act or nn.ReLU()
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x, edge_index)))
        return self.last(self.dropout(x), edge_index)


class Gcn2(nn.Module):
    """GCNII (Chen et al. 2020): each layer adds a share of the first."""

    def __init__(self, num_layers: int = 3) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.layers = nn.ModuleList(
            pyg.GCN2Conv(HIDDEN, 0.1, 0.5, layer + 1) for layer in range(num_layers)
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = first = self.enter(x).relu()
        for layer in self.layers:
            x = functional.dropout(x, 0.3, self.training)
            x = layer(x, first, edge_index).relu()
        return self.leave(x)


class Deep(nn.Module):
    """DeepGCN (Li et al. 2020): norm, activation, Dropout, convolution, and a sum."""

    def __init__(self, num_layers: int = 3) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.layers = nn.ModuleList(
            pyg.DeepGCNLayer(
                pyg.GENConv(HIDDEN, HIDDEN, num_layers=2, norm="layer"),
                nn.LayerNorm(HIDDEN),
                nn.ReLU(inplace=True),
                dropout=0.1,
            )
            for _ in range(num_layers)
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x, edge_index)
        return self.leave(x)


def _mlp(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, out), nn.ReLU(), nn.Linear(out, out))


def _pna(width: int, out: int) -> nn.Module:
    degrees = torch.bincount(torch.bincount(edges()[1], minlength=NODES))
    aggregators, scalers = ["mean", "min", "max", "std"], ["identity", "amplification"]
    return pyg.PNAConv(width, out, aggregators, scalers, degrees)


def _basic(model: type[nn.Module], **arguments: object) -> Callable[[], nn.Module]:
    return lambda: model(
        FEATURES, HIDDEN, num_layers=3, out_channels=CLASSES, dropout=0.5, **arguments
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "sage": _basic(pyg.GraphSAGE, norm="batch"),
    "sage jumping": _basic(pyg.GraphSAGE, jk="cat"),
    "gcn": _basic(pyg.GCN, norm="batch"),
    "gin": _basic(pyg.GIN, norm="batch"),
    "gat": _basic(pyg.GAT, heads=4),
    "gatv2": _basic(pyg.GAT, heads=4, v2=True),
    "pna": lambda: Stack(_pna),
    "graph conv": lambda: Stack(pyg.GraphConv),
    "transformer, layer norm": lambda: Stack(pyg.TransformerConv, nn.LayerNorm),
    "chebyshev, graph norm": lambda: Stack(
        lambda width, out: pyg.ChebConv(width, out, 3), pyg.GraphNorm
    ),
    "tag, elu": lambda: Stack(pyg.TAGConv, None, nn.ELU()),
    "sg, instance norm, leaky relu": lambda: Stack(
        pyg.SGConv, pyg.InstanceNorm, nn.LeakyReLU()
    ),
    "pair norm, gelu": lambda: Stack(
        pyg.SAGEConv, lambda width: pyg.PairNorm(), nn.GELU()
    ),
    "prelu": lambda: Stack(pyg.SAGEConv, act=nn.PReLU()),
    "silu in place": lambda: Stack(pyg.SAGEConv, act=nn.SiLU(inplace=True)),
    "relu in place": lambda: Stack(pyg.SAGEConv, act=nn.ReLU(inplace=True)),
    "relu in place, no norm": lambda: Stack(
        pyg.SAGEConv, None, act=nn.ReLU(inplace=True)
    ),
    "gated": lambda: Stack(lambda width, out: pyg.GatedGraphConv(max(width, out), 2)),
    "appnp": lambda: Stack(
        lambda width, out: pyg.Sequential(
            "x, e",
            [(nn.Linear(width, out), "x -> x"), (pyg.APPNP(3, 0.1), "x, e -> x")],
        )
    ),
    "edge conv": lambda: Stack(lambda width, out: pyg.EdgeConv(_mlp(2 * width, out))),
    "gcn2": Gcn2,
    "deep gcn": Deep,
}
# These refuse a sparse matrix themselves.
EDGES_ONLY = {"chebyshev, graph norm"}
