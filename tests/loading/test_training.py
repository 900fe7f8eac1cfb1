"""Mini-batches and codes together: networks learn on them as on full batches."""

import re
import runpy
import statistics
from pathlib import Path

import pytest
import torch
from scipy.stats import t as student
from torch import nn
from torch.nn.functional import cross_entropy
from torch_geometric.loader import RandomNodeLoader
from torch_geometric.nn import GCN, GraphConv, GraphSAGE
from torch_geometric.utils import degree

from pipeline_src import (
    ClusterLoader,
    CompressionConfig,
    NeighborLoader,
    SaintWalkLoader,
    compress,
    digits_graph,
    graph_data,
    partition_graph,
)

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(3)


@pytest.fixture(scope="module")
def digits():
    data = graph_data(digits_graph())
    receiver = data.edge_index[1]
    # What an edge weighs in the mean that its receiver takes over the whole graph.
    data.edge_weight = (1 / degree(receiver, data.num_nodes))[receiver]
    return data


class WeightedNetwork(nn.Module):
    """Two layers of GraphSAGE with a weight for each edge."""

    def __init__(self):
        super().__init__()
        self.first, self.second = GraphConv(64, 48), GraphConv(48, 10)

    def forward(self, x, edge_index, edge_weight):
        x = self.first(x, edge_index, edge_weight).relu()
        return self.second(x, edge_index, edge_weight)


def of_batch(model, batch):
    """Logits, given what the network takes."""
    weights = ()
    if isinstance(model, WeightedNetwork):
        norm = batch.edge_norm if "edge_norm" in batch else 1
        weights = (batch.edge_weight * norm,)
    return model(batch.x, batch.edge_index, *weights)


def of_seeds(model, batch):
    seeds = batch.batch_size
    return cross_entropy(of_batch(model, batch)[:seeds], batch.y[:seeds])


def of_train_nodes(model, batch):
    mask = batch.train_mask
    return cross_entropy(of_batch(model, batch)[mask], batch.y[mask])


def of_normed_nodes(model, batch):
    each = cross_entropy(of_batch(model, batch), batch.y, reduction="none")
    return (each * batch.node_norm)[batch.train_mask].sum()


def neighbors(data, seed):
    return NeighborLoader(data, [6, 3], data.train_mask, 256, shuffle=True, seed=seed)


def clusters(data, seed):
    parts = partition_graph(data, 30, seed=seed)
    return ClusterLoader(data, parts, 6, shuffle=True, seed=seed)


def walks(data, seed):
    return SaintWalkLoader(data, 150, 2, 5, sample_coverage=20, seed=seed)


def fit(model, batches, loss_of, num_epochs):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(num_epochs):
        of_epoch = []
        for batch in batches:
            optimizer.zero_grad()
            loss = loss_of(model.train(), batch)
            loss.backward()
            optimizer.step()
            of_epoch.append(loss.item())
        losses.append(statistics.mean(of_epoch))
    return losses


def accuracy(model, data):
    with torch.no_grad():
        right = of_batch(model.eval(), data).argmax(dim=1) == data.y
    return float(right[data.test_mask].float().mean())


def test_accuracy_is_that_of_full_batches_to_the_noise_of_seeds(digits):
    """Welch's test, at a risk of 1e-3, with one test node for rounding.

    Batches and 2-bit codes on one side, the whole graph and exact activations on the
    other, with as many steps of Adam.
    """
    found, full = [], []
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = compress(GraphSAGE(64, 48, 2, 10), CompressionConfig(bits=2))
        fit(model, neighbors(digits, seed), of_seeds, 4)
        found.append(accuracy(model, digits))
        torch.manual_seed(seed)
        exact = GraphSAGE(64, 48, 2, 10)
        fit(exact, [digits], of_train_nodes, 20)
        full.append(accuracy(exact, digits))
    spread = [statistics.variance(side) / len(SEEDS) for side in (found, full)]
    wide = sum(spread)
    freedom = wide**2 / sum(one**2 / (len(SEEDS) - 1) for one in spread) if wide else 1
    bound = student.isf(0.5e-3, freedom) * wide**0.5
    bound += 1 / int(digits.test_mask.sum())
    assert abs(statistics.mean(found) - statistics.mean(full)) <= bound
    assert min(found) > 0.9


@pytest.mark.parametrize(
    ("network", "loader", "loss_of"),
    [
        (lambda: GCN(64, 48, 2, 10), clusters, of_train_nodes),
        (WeightedNetwork, walks, of_normed_nodes),
    ],
)
def test_networks_learn_on_subgraphs_and_codes(digits, network, loader, loss_of):
    torch.manual_seed(0)
    model = compress(network(), CompressionConfig(bits=2))
    losses = fit(model, loader(digits, 0), loss_of, 8)
    assert losses[-1] < losses[0] / 3
    assert accuracy(model, digits) > 0.9


def test_batches_of_pytorch_geometrics_loaders_go_through_the_same_network(digits):
    """Those of its loaders that need no compiled extras."""
    torch.manual_seed(0)
    model = compress(GraphSAGE(64, 48, 2, 10), CompressionConfig(bits=2))
    batches = RandomNodeLoader(digits, num_parts=4, shuffle=True)
    losses = fit(model, batches, of_train_nodes, 5)
    assert losses[-1] < losses[0] / 3


def test_the_guide_multiplies_messages_and_losses_by_their_norms():
    """Its code runs, and its last loss is the one written out with a dense matrix."""
    page = (ROOT / "docs" / "how-to" / "minibatches.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(compile(code, "minibatches.md", "exec"), names)
    data, batch, conv = names["data"], names["batch"], names["conv"].double()
    heard = torch.bincount(data.edge_index[1])[batch.n_id].double()
    weight = torch.zeros(batch.num_nodes, batch.num_nodes).double()
    sender, receiver = batch.edge_index
    weight[receiver, sender] = batch.edge_norm / heard[receiver]
    x = batch.x.double()
    chances = (conv.lin_rel(weight @ x) + conv.lin_root(x)).softmax(dim=1)
    losses = -chances[torch.arange(len(x)), batch.y].log() * batch.node_norm
    # Float32 against float64: below a thousand roundings of 2^-24 each, one after
    # another in a node's sums and in the sum of losses, which are all positive.
    torch.testing.assert_close(
        names["loss"].double(), losses[batch.train_mask].sum(), rtol=1e-4, atol=0
    )


def test_the_example_learns():
    main = runpy.run_path(str(ROOT / "examples" / "minibatch.py"))["main"]
    losses, found = main(num_epochs=3)
    assert losses[-1] < losses[0] / 3
    assert found > 0.9
