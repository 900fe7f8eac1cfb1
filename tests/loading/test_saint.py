"""Subgraphs against the definition, and norms against exact probabilities."""

import itertools
import math

import numpy as np
import pytest
import torch
from made_up_batches import RISK, hoeffding, same, same_batches, small_data
from torch_geometric.data import Data

from pipeline_src import SaintNodeLoader, SaintWalkLoader
from pipeline_src.loading.batches import Seed
from pipeline_src.loading.in_edges import induced_subgraph
from pipeline_src.loading.saint import Counts, NodeDraw, WalkDraw

# Rounding of a norm to float32, and of one more operation on it.
FLOAT32 = 2.0**-23


def lopsided() -> Data:
    """Six nodes: a hub, a loop, a repeated edge, one that hears from nobody."""
    edges = [(1, 0), (2, 0), (3, 0), (4, 0), (0, 1), (0, 2), (2, 2), (3, 2), (3, 2)]
    edges += [(4, 3), (1, 4), (0, 4), (5, 1)]
    return Data(edge_index=torch.tensor(edges).t(), num_nodes=6)


def heard_by(data: Data) -> list[list[int]]:
    """Senders of each node's edges, an edge at a time."""
    senders = [[] for _ in range(data.num_nodes)]
    for sender, receiver in data.edge_index.t().tolist():
        senders[receiver].append(sender)
    return senders


def shares(data: Data) -> list[float]:
    """How likely a node is drawn: sums of squares of a mean that includes itself."""
    senders = heard_by(data)
    weight = [0.0] * data.num_nodes
    for receiver, heard in enumerate(senders):
        for sender in [*heard, receiver]:
            weight[sender] += 1 / (len(heard) + 1) ** 2
    return [one / sum(weight) for one in weight]


def walk_probabilities(data: Data, length: int):
    """P(a walk meets v) and P(it meets u or v), all walks written out."""
    senders, num_nodes = heard_by(data), data.num_nodes
    walks = [([node], 1 / num_nodes) for node in range(num_nodes)]
    for _ in range(length):
        walks = [
            ([*walk, there], chance / len(senders[walk[-1]] or [0]))
            for walk, chance in walks
            for there in senders[walk[-1]] or [walk[-1]]
        ]
    assert math.isclose(sum(chance for _, chance in walks), 1)
    either = np.zeros((num_nodes, num_nodes))
    for walk, chance in walks:
        for u, v in itertools.product(range(num_nodes), repeat=2):
            either[u, v] += chance * (u in walk or v in walk)
    return either.diagonal(), either


def inclusion(data: Data, single, either, num_draws):
    """p_v, and p_uv of each edge, from those of one draw or walk."""
    node = 1 - (1 - np.asarray(single)) ** num_draws
    u, v = data.edge_index.numpy()
    joint = node[u] + node[v] - (1 - (1 - either[u, v]) ** num_draws)
    return node, joint


LOADERS = {
    "nodes": lambda data, **options: SaintNodeLoader(data, 25, 3, **options),
    "walks": lambda data, **options: SaintWalkLoader(data, 8, 3, 3, **options),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_are_induced_subgraphs(kind):
    data = small_data()
    loader = LOADERS[kind](data)
    assert len(loader) == 3
    for batch in loader:
        inside = set(batch.n_id.tolist())
        expected = [
            edge
            for edge, (u, v) in enumerate(data.edge_index.t().tolist())
            if u in inside and v in inside
        ]
        assert sorted(batch.e_id.tolist()) == expected
        ends = batch.n_id[batch.edge_index]
        assert torch.equal(ends, data.edge_index[:, batch.e_id])
        assert torch.equal(batch.x, data.x[batch.n_id])
        assert torch.equal(batch.edge_attr, batch.e_id)
        assert batch.node_norm.shape == batch.n_id.shape
        assert batch.edge_norm.shape == batch.e_id.shape


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_depend_on_seed_epoch_and_place_alone(kind):
    data = small_data()
    loader = LOADERS[kind](data, seed=2)
    first, second = list(loader), list(loader)
    assert not same(first[0], second[0])
    assert not same(first[0], first[1])
    again = LOADERS[kind](data, seed=2, num_workers=2)
    assert same_batches(first, again)
    assert same_batches(second, again)
    assert not same(first[0], next(iter(LOADERS[kind](data, seed=3))))


def test_nodes_are_drawn_by_the_law_of_the_paper():
    """One draw at a time: each node as often as its share says."""
    data = lopsided()
    draw = NodeDraw(data, 1)
    assert np.allclose(draw.share, shares(data), rtol=1e-14, atol=0)
    generator = np.random.default_rng(0)
    times = 20_000
    drawn = np.concatenate([draw.nodes(generator) for _ in range(times)])
    found = np.bincount(drawn, minlength=6) / times
    assert np.abs(found - draw.share).max() < hoeffding(times, 6)


@pytest.mark.parametrize("num_draws", [2, 3])
def test_norms_of_drawn_nodes_are_exact(num_draws):
    """Every possible batch, weighted by its probability: each weight is one."""
    data = lopsided()
    draw = NodeDraw(data, num_draws)
    share = shares(data)
    node, edge, inside = np.zeros(6), np.zeros(data.num_edges), np.zeros(6)
    for outcome in itertools.product(range(6), repeat=num_draws):
        chance = math.prod(share[v] for v in outcome)
        subgraph = induced_subgraph(draw.rows, np.unique(outcome))
        norms = draw.norms(subgraph)
        inside[subgraph.node] += chance
        node[subgraph.node] += chance * norms["node_norm"]
        edge[subgraph.edge] += chance * norms["edge_norm"]
    assert np.allclose(node, 1 / 6, rtol=1e-12, atol=0)
    assert np.allclose(edge, inside[data.edge_index[1]], rtol=1e-12, atol=0)


def test_two_nodes_that_are_all_there_is_have_norms_as_well():
    data = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=2)
    draw = NodeDraw(data, 4)
    norms = draw.norms(induced_subgraph(draw.rows, np.arange(2)))
    once = 1 - 2.0**-4  # both are as likely
    assert np.allclose(norms["node_norm"], 1 / (2 * once))
    assert np.allclose(norms["edge_norm"], once / (2 * once - 1))


@pytest.mark.parametrize("length", [1, 3])
def test_walks_meet_nodes_and_edges_as_often_as_written_out(length):
    data = lopsided()
    roots, times = 2, 20_000
    expected = inclusion(data, *walk_probabilities(data, length), roots)
    draw = WalkDraw(data, roots, length)
    generator = np.random.default_rng(1)
    node, edge = np.zeros(6), np.zeros(data.num_edges)
    for _ in range(times):
        drawn = draw.nodes(generator)
        node[drawn] += 1
        edge[induced_subgraph(draw.rows, drawn).edge] += 1
    bound = hoeffding(times, 6 + data.num_edges)
    assert np.abs(node / times - expected[0]).max() < bound
    assert np.abs(edge / times - expected[1]).max() < bound


def test_counted_norms_lose_only_the_chance_of_never_being_seen():
    """Over all values of the counts: 1 - (1 - p)^(M + 1), for nodes and for edges."""
    num_subgraphs, chance, given = 7, 0.3, 0.4
    subgraph = induced_subgraph(NodeDraw(PAIR, 1).rows, np.arange(2))

    def binomial(number, total, p):
        return math.comb(total, number) * p**number * (1 - p) ** (total - number)

    weight = 0.0
    for count in range(num_subgraphs + 1):
        edge_weight = 0.0
        for both in range(count + 1):
            counts = Counts(num_subgraphs, np.array([0, count]), np.array([both]))
            norms = counts.norms(subgraph)
            edge_weight += binomial(both, count, given) * norms["edge_norm"][0] * given
        assert math.isclose(edge_weight, 1 - (1 - given) ** (count + 1))
        node_weight = 2 * norms["node_norm"][1] * chance
        weight += binomial(count, num_subgraphs, chance) * node_weight
    assert math.isclose(weight, 1 - (1 - chance) ** (num_subgraphs + 1))


PAIR = Data(edge_index=torch.tensor([[0], [1]]), num_nodes=2)


def test_counts_are_those_of_subgraphs_drawn_ahead():
    data = lopsided()
    loader = SaintWalkLoader(data, 2, 1, sample_coverage=2000, seed=4)
    counts = loader.draw.counts
    node, edge = inclusion(data, *walk_probabilities(data, 1), 2)
    bound = hoeffding(counts.num_subgraphs, 6 + data.num_edges)
    assert np.abs(counts.node / counts.num_subgraphs - node).max() < bound
    assert np.abs(counts.edge / counts.num_subgraphs - edge).max() < bound
    assert 2000 * 6 <= counts.node.sum() < 2000 * 6 + 6
    # A stream of their own: batches that were counted would find themselves twice.
    seed = loader.dataset.seed
    ahead = [seed.of_count(number) for number in range(counts.num_subgraphs)]
    drawn = np.concatenate([loader.draw.nodes(one) for one in ahead])
    assert np.array_equal(counts.node, np.bincount(drawn))


BIASED = {
    "nodes": lambda data: SaintNodeLoader(data, 3),
    "walks": lambda data: SaintWalkLoader(data, 2, 1, sample_coverage=5000),
}
STEPS = 10_000


@pytest.mark.parametrize("kind", BIASED)
def test_sums_over_batches_are_those_over_the_graph(kind):
    """A mean over neighbours and a mean loss; without norms both are wrong.

    Each message brings a number of [0, 1], so that the weighted sum that v forms lies
    in [0, the sum of its largest weights]; over the K batches that hold v its mean
    lies within that range times sqrt(log(2 / risk) / 2K) of its expectation. For
    counted norms the expectation itself is off by how far shares of counts lie from
    probabilities: at most the sum of weight * (t + 1 / (C_v + 1)) / estimate.
    """
    data = lopsided()
    loader = BIASED[kind](data)
    u, v = data.edge_index.numpy()
    degree = np.bincount(v, minlength=6)
    number = np.array([1.0, 0.0, 0.2, 0.0, 1.0, 0.0])  # what nodes say
    share = 1 / degree[v]  # of each edge in its receiver's mean

    def sums(edges, messages):
        return np.bincount(v[edges], messages, 6)

    every = np.arange(data.num_edges)
    full = sums(every, share * number[u])
    held, total, plain, node_weight = (np.zeros(6) for _ in range(4))
    largest = np.zeros(data.num_edges)
    loss = plain_loss = 0.0
    for place in range(STEPS):
        subgraph, norms = loader.draw(Seed(0), 0, place)
        node, edge = subgraph.node, subgraph.edge
        message = share[edge] * number[u[edge]]
        held[node] += 1
        total += sums(edge, message * norms["edge_norm"])
        plain += sums(edge, message)
        largest[edge] = np.maximum(largest[edge], norms["edge_norm"])
        node_weight[node] = norms["node_norm"]
        loss += norms["node_norm"] @ number[node]
        plain_loss += number[node].mean()

    reach = sums(every, share * largest)
    bound = reach * np.sqrt(math.log(2 * 7 / RISK) / (2 * held)) + FLOAT32
    loss_reach = node_weight @ number
    loss_bound = loss_reach * hoeffding(STEPS, 7) + FLOAT32
    if kind == "walks":
        counts = loader.draw.counts
        seen = counts.node
        off = np.sqrt(math.log(2 * data.num_edges / RISK) / (2 * seen)) + 1 / (seen + 1)
        bound += sums(every, share * largest * off[v])  # an estimate is 1 / norm
        off = hoeffding(counts.num_subgraphs, 6) + 1 / (counts.num_subgraphs + 1)
        loss_bound += off * loss_reach

    hears = degree > 0
    assert (np.abs(total / held - full) <= bound)[hears].all()
    assert (np.abs(plain / held - full) > bound)[hears].any()
    assert abs(loss / STEPS - number.mean()) <= loss_bound
    assert abs(plain_loss / STEPS - number.mean()) > loss_bound


def test_without_coverage_walks_have_no_norms():
    (batch,) = SaintWalkLoader(small_data(), 5, 2, sample_coverage=0)
    assert "node_norm" not in batch
    assert "edge_norm" not in batch


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SaintNodeLoader(PAIR, 0), "batch_size: expected at least 1, got 0"),
        (lambda: SaintNodeLoader(PAIR, 2, 0), "num_steps: expected at least 1, got 0"),
        (lambda: SaintWalkLoader(PAIR, 2, 0), "walk_length: expected at least 1"),
        (lambda: SaintWalkLoader(PAIR, 2, 1, 1, -1), "sample_coverage: .* at least 0"),
        (lambda: SaintWalkLoader(PAIR, 2, 1, shuffle=True), "shuffle: no argument of"),
    ],
)
def test_what_cannot_be_right_is_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
