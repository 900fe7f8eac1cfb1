"""Kinds of graphs, models and engines that compress meets."""

import copy

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn
from torch.nn import functional
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.nn import to_hetero

from pipeline_src.compression.attachment import compress
from pipeline_src.compression.config import CompressionConfig
from pipeline_src.training.meters import measure_memory
from tests.compression.zoo import (
    CLASSES,
    FEATURES,
    HIDDEN,
    MODELS,
    NODES,
    adjacency,
    edges,
    features,
    labels,
)

EXACT = CompressionConfig(bits=32, min_numel=1)
TWO_BITS = CompressionConfig(bits=2, min_numel=1)
EPS = torch.finfo(torch.float32).eps


def both_ways(model, loss, config=EXACT):
    """Losses and gradients of a model and of its compressed copy."""
    other = compress(copy.deepcopy(model), config)
    found = []
    for one in (model, other):
        torch.manual_seed(3)
        value = loss(one)
        value.backward()
        found.append((value.detach(), {n: p.grad for n, p in one.named_parameters()}))
    return found


def assert_same(found):
    (loss, expected), (other, gradients) = found
    assert torch.equal(loss, other)
    largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    for name, one in expected.items():
        if one is None:
            assert gradients[name] is None
        else:
            bound = largest * NODES * EPS
            assert (gradients[name] - one).abs().max() <= bound, name


def hetero():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = pyg.SAGEConv((-1, -1), HIDDEN)
            self.last = pyg.SAGEConv((-1, -1), CLASSES)

        def forward(self, x, edge_index):
            return self.last(self.first(x, edge_index).relu(), edge_index)

    kinds = ["paper", "author"], [("author", "to", "paper"), ("paper", "to", "author")]
    torch.manual_seed(4)
    model = to_hetero(Net(), kinds)
    x = {"paper": features(), "author": features()[:60].clone()}
    index = edges() % 60
    where = {("author", "to", "paper"): index, ("paper", "to", "author"): index.flip(0)}
    with torch.no_grad():
        model(x, where)  # widths are found
    return model, lambda one: functional.cross_entropy(one(x, where)["paper"], labels())


def test_models_of_many_kinds_of_nodes():
    assert_same(both_ways(*hetero()))
    model, loss = hetero()
    assert torch.equal(loss(model), loss(compress(model, TWO_BITS)))


def test_heterogeneous_convolutions():
    torch.manual_seed(4)
    conv = pyg.HeteroConv(
        {
            ("a", "to", "b"): pyg.GATConv(
                (FEATURES, FEATURES), HIDDEN, add_self_loops=False
            ),
            ("b", "to", "a"): pyg.SAGEConv((FEATURES, FEATURES), HIDDEN),
        }
    )
    x = {"a": features(), "b": features().flip(0)}
    where = {("a", "to", "b"): edges(), ("b", "to", "a"): edges().flip(0)}

    def loss(one):
        out = one(x, where)
        return out["a"].square().sum() + out["b"].square().sum()

    assert_same(both_ways(conv, loss))


def test_sorted_edges_with_their_own_type():
    torch.manual_seed(4)
    index = EdgeIndex(edges(), sparse_size=(NODES, NODES)).sort_by("col")[0]
    loss = lambda one: functional.cross_entropy(one(features(), index), labels())  # noqa: E731
    assert_same(both_ways(MODELS["sage"](), loss))


def test_graphs_in_batches_are_read_out():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = pyg.GINConv(nn.Linear(FEATURES, HIDDEN))
            self.last = nn.Linear(3 * HIDDEN, CLASSES)

        def forward(self, x, edge_index, batch):
            x = self.conv(x, edge_index).relu()
            pools = (
                pyg.global_mean_pool,
                pyg.global_max_pool,
                pyg.global_add_pool,
            )
            return self.last(torch.cat([pool(x, batch) for pool in pools], dim=-1))

    torch.manual_seed(4)
    batch = torch.arange(NODES) // 30
    loss = lambda one: one(features(), edges(), batch).square().sum()  # noqa: E731
    assert_same(both_ways(Reads(), loss))


def test_embeddings_that_are_trained_too():
    class Embeds(nn.Module):
        def __init__(self):
            super().__init__()
            self.nodes = nn.Embedding(NODES, FEATURES)
            self.inner = MODELS["gcn"]()

        def forward(self, edge_index):
            return self.inner(self.nodes.weight, edge_index)

    torch.manual_seed(4)
    loss = lambda one: functional.cross_entropy(one(edges()), labels())  # noqa: E731
    assert_same(both_ways(Embeds(), loss))


def test_a_transformer_block_that_knows_no_graph():
    torch.manual_seed(4)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
    x = torch.randn(4, 30, 16, generator=torch.Generator().manual_seed(1))
    assert_same(both_ways(layer, lambda one: one(x).square().sum()))


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        torch.manual_seed(4)
        model = MODELS["sage"]()
        other = nn.parallel.DistributedDataParallel(
            compress(copy.deepcopy(model), EXACT)
        )
        found = []
        for one in (model, other):
            torch.manual_seed(3)
            loss = functional.cross_entropy(one(features(), edges()), labels())
            loss.backward()
            names = {n.removeprefix("module."): p for n, p in one.named_parameters()}
            found.append((loss.detach(), {n: p.grad for n, p in names.items()}))
        assert_same(found)
    finally:
        torch.distributed.destroy_process_group()


def test_a_short_training_is_as_good():
    """On labels that can be learnt: at most six standard errors of an accuracy."""
    torch.manual_seed(4)
    model = MODELS["sage"]()
    other = compress(copy.deepcopy(model), TWO_BITS)
    # Classes by the features of a node and its neighbours.
    target = (features()[:, :CLASSES]).argmax(dim=1)
    right = []
    for one in (model, other):
        torch.manual_seed(3)
        optimizer = torch.optim.Adam(one.parameters(), lr=0.01)
        for _ in range(150):
            optimizer.zero_grad()
            functional.cross_entropy(one(features(), edges()), target).backward()
            optimizer.step()
        with torch.no_grad():
            found = one.eval()(features(), edges()).argmax(dim=1)
            right.append((found == target).float().mean())
    exact, coded = map(float, right)
    spread = (exact * (1 - exact) / NODES + coded * (1 - coded) / NODES) ** 0.5
    assert exact > 0.7
    assert exact - coded <= 6 * max(spread, 0.5 / NODES)


@pytest.mark.parametrize("graph", ["edges", "matrix"])
def test_data_in_an_object_is_as_resident_as_an_argument(graph):
    """Codes of the features would cost bytes, and noise in the first layer."""

    class TakesData(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = MODELS["sage"]()

        def forward(self, data):
            return self.inner(data.x, data.where)

    class MakesItsOwn(TakesData):
        def forward(self, data):
            return self.inner(functional.dropout(data.x, 0.2), data.where)

    where = edges() if graph == "edges" else adjacency()
    data = Data(x=features(), where=where)
    kept = {}
    for kind in (TakesData, MakesItsOwn):
        torch.manual_seed(4)
        model = compress(kind(), TWO_BITS)
        model(data)
        loss, use = measure_memory(lambda m=model: m(data), torch.device("cpu"))
        kept[kind] = use.held
        loss.square().sum().backward()
    torch.manual_seed(4)
    inner = compress(MODELS["sage"](), TWO_BITS)
    inner(features(), where)
    x = features()
    _, use = measure_memory(lambda: inner(x, where), torch.device("cpu"))
    assert kept[TakesData] == use.held
    assert kept[MakesItsOwn] > use.held, "what forward makes is kept as codes"
