"""Neighbour sampling against the definition, edge by edge, and against its law."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_batches import hoeffding, same, same_batches, small_data
from made_up_graphs import edge_lists
from torch_geometric.data import Data, HeteroData

from pipeline_src import NeighborLoader, digits_graph, graph_data, synthetic_graph
from pipeline_src.loading.batches import Seed
from pipeline_src.loading.neighbors import draw_without_replacement


def check_against_the_definition(data: Data, batch: Data, fan_outs, seeds) -> None:
    """Every edge on its own, in plain Python."""
    receives = {node: [] for node in range(data.num_nodes)}
    for edge, (_, receiver) in enumerate(data.edge_index.t().tolist()):
        receives[receiver].append(edge)
    node, edges = batch.n_id.tolist(), batch.e_id.tolist()
    assert len(set(node)) == len(node)
    assert len(set(edges)) == len(edges)
    assert node[: batch.batch_size] == seeds
    ends = [[node[end] for end in pair] for pair in batch.edge_index.t().tolist()]
    assert ends == data.edge_index[:, batch.e_id].t().tolist()

    known, frontier, taken = list(seeds), list(seeds), 0
    assert batch.num_sampled_nodes[0] == len(seeds)
    for hop, fan_out in enumerate(fan_outs):
        found = []
        for receiver in frontier:
            wanted = len(receives[receiver])
            if fan_out != -1:
                wanted = min(wanted, fan_out)
            drawn = edges[taken : taken + wanted]
            assert set(drawn) <= set(receives[receiver])
            if wanted == len(receives[receiver]):
                assert set(drawn) == set(receives[receiver])
            taken += wanted
            for edge in drawn:
                sender = int(data.edge_index[0, edge])
                if sender not in known:
                    known.append(sender)
                    found.append(sender)
        assert batch.num_sampled_nodes[hop + 1] == len(found)
        frontier = found
    assert node == known
    assert taken == len(edges) == sum(batch.num_sampled_edges)


@settings(max_examples=80, deadline=None)
@given(edge_lists(), st.lists(st.sampled_from([-1, 1, 2, 5]), min_size=1, max_size=3))
def test_batches_are_what_the_definition_says(edges, fan_outs):
    num_nodes, source, target = edges
    data = Data(edge_index=torch.tensor(np.stack([source, target])))
    data.num_nodes = num_nodes
    seen = []
    for batch in NeighborLoader(data, fan_outs, batch_size=4, shuffle=True):
        seeds = batch.n_id[: batch.batch_size].tolist()
        assert seeds == batch.input_id.tolist()
        check_against_the_definition(data, batch, fan_outs, seeds)
        seen += seeds
    assert sorted(seen) == list(range(num_nodes))


def test_a_batch_carries_what_the_graph_says_of_its_nodes_and_edges():
    data = small_data()
    seeds = torch.tensor([40, 3, 17, 8, 22])
    for batch in NeighborLoader(data, [3, 2], seeds, batch_size=2):
        check_against_the_definition(
            data, batch, [3, 2], seeds[batch.input_id].tolist()
        )
        assert torch.equal(batch.x, data.x[batch.n_id])
        assert torch.equal(batch.y, batch.n_id)
        assert torch.equal(batch.edge_attr, batch.e_id)
        assert batch.names == [f"node {node}" for node in batch.n_id.tolist()]
        assert batch.rank.tolist() == batch.n_id.tolist()
        assert batch.title == "a graph"
        assert batch.num_nodes == len(batch.n_id)
        batch.validate()


def test_fields_of_as_many_nodes_as_edges_are_told_apart_by_their_names():
    ring = torch.arange(30)
    edge_index = torch.stack([ring, ring.roll(1)])
    data = Data(x=ring + 0.5, edge_index=edge_index, edge_attr=ring, edge_weight=ring)
    (batch,) = NeighborLoader(data, [1], torch.tensor([4, 9]), batch_size=2)
    assert torch.equal(batch.x, batch.n_id + 0.5)
    assert torch.equal(batch.edge_attr, batch.e_id)
    assert torch.equal(batch.edge_weight, batch.e_id)


def test_batches_are_the_same_in_a_process_that_inherits_nothing():
    """What workers are sent where they are not forked."""
    loader = NeighborLoader(small_data(), [3, 2], batch_size=20, shuffle=True)
    sent = pickle.loads(pickle.dumps(loader.dataset))
    assert same(sent[0, 1], loader.dataset[0, 1])


@pytest.mark.parametrize(("degree", "fan_out"), [(5, 2), (6, 3), (7, 6), (4, 1)])
def test_all_sets_of_neighbours_are_equally_likely(degree, fan_out):
    rows = 200_000
    drawn = draw_without_replacement(
        np.full(rows, degree), fan_out, np.random.default_rng(3)
    )
    assert drawn.shape == (fan_out, rows)
    sets, counts = np.unique(np.sort(drawn, axis=0), axis=1, return_counts=True)
    possible = list(itertools.combinations(range(degree), fan_out))
    assert [tuple(one) for one in sets.T.tolist()] == possible
    bound = hoeffding(rows, len(possible))
    assert np.abs(counts / rows - 1 / len(possible)).max() < bound


def test_neighbours_of_one_node_are_drawn_independently_of_others():
    """Two rows of the same degree: all pairs of single draws are equally likely."""
    degree = np.tile([3, 3], 100_000)
    drawn = draw_without_replacement(degree, 1, np.random.default_rng(0))
    pairs = drawn.reshape(-1, 2) @ [3, 1]
    shares = np.bincount(pairs, minlength=9) / len(pairs)
    assert np.abs(shares - 1 / 9).max() < hoeffding(len(pairs), 9)


def test_each_edge_is_in_a_batch_as_often_as_its_fan_out_says():
    data = small_data(num_nodes=12, num_edges=100)
    loader = NeighborLoader(data, [3], batch_size=12)
    degree = torch.bincount(data.edge_index[1], minlength=12)
    epochs = 2000
    counts = torch.zeros(data.num_edges)
    for _ in range(epochs):
        (batch,) = loader
        counts[batch.e_id] += 1
    expected = (3 / degree[data.edge_index[1]]).clamp(max=1)
    assert (counts / epochs - expected).abs().max() < hoeffding(epochs, data.num_edges)


def test_batches_depend_on_seed_epoch_and_place_alone():
    """Neither on workers, nor on the global generator, nor on what was read before."""
    data = graph_data(digits_graph())

    def loader(**options):
        options = {"seed": 5, **options}
        return NeighborLoader(
            data, [4, 3], data.train_mask, batch_size=300, shuffle=True, **options
        )

    plain = loader()
    first, second = list(plain), list(plain)
    assert not same(first[0], second[0])
    assert not same(first[0], next(iter(loader(seed=6))))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    for options in ({"num_workers": 1}, {"num_workers": 2, "persistent_workers": True}):
        other = loader(**options)
        for epoch in (first, second):
            assert same_batches(epoch, other)
    other.set_epoch(0)
    assert same_batches(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    again = loader()
    again.set_epoch(1)
    assert same(second[0], next(iter(again)))


def test_streams_of_random_numbers_are_all_different():
    places = list(itertools.product(range(4), repeat=2))
    numbers = []
    for seed in map(Seed, range(4)):
        numbers += [seed.of(*place).integers(2**63) for place in places]
        numbers += [seed.of_epoch(epoch).integers(2**63) for epoch in range(8)]
        numbers += [seed.of_count(number).integers(2**63) for number in range(8)]
    assert len(set(numbers)) == len(numbers)


def test_what_is_done_to_the_graph_later_does_not_reach_the_loader():
    data = small_data()
    loader = NeighborLoader(data, [2], batch_size=20)
    data.x, data.edge_index = -data.x, data.edge_index.flip(0)
    for batch in loader:
        assert torch.equal(batch.x[:, 0], 3.0 * batch.n_id)


def test_two_passes_at_once_keep_to_their_epochs():
    data = small_data()
    loader = NeighborLoader(data, [2], batch_size=20)
    pairs = list(zip(loader, loader, strict=True))
    loader.set_epoch(0)
    assert same_batches([one for one, _ in pairs], loader)
    assert same_batches([other for _, other in pairs], loader)


def test_seeds_of_an_epoch_are_all_input_nodes_once():
    data = small_data()
    mask = torch.arange(60) % 3 == 0
    loader = NeighborLoader(data, [2], mask, batch_size=8, shuffle=True)
    orders = []
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == 3
        assert [batch.batch_size for batch in batches] == [8, 8, 4]
        for batch in batches:  # a mask's seeds go by their numbers
            assert torch.equal(batch.input_id, batch.n_id[: batch.batch_size])
        orders.append(torch.cat([b.n_id[: b.batch_size] for b in batches]))
        assert torch.equal(orders[-1].sort().values, mask.nonzero().flatten())
    assert not torch.equal(*orders)
    shorter = NeighborLoader(data, [2], mask, batch_size=8, drop_last=True)
    assert [batch.batch_size for batch in shorter] == [8, 8]


def test_a_network_on_all_neighbours_gives_its_seeds_the_full_result():
    """No sampling: the hops hold all that a network of as many layers looks at."""
    from torch_geometric.nn import GraphSAGE

    graph = synthetic_graph(num_nodes=200, num_edges=1000)
    data = graph_data(graph)
    torch.manual_seed(0)
    model = GraphSAGE(16, 8, num_layers=2, out_channels=4).double().eval()
    data.x = data.x.double()
    full = model(data.x, data.edge_index)
    for batch in NeighborLoader(data, [-1, -1], batch_size=64):
        found = model(batch.x, batch.edge_index)[: batch.batch_size]
        # Sums of at most a few hundred doubles in another order.
        torch.testing.assert_close(
            found, full[batch.n_id[: batch.batch_size]], rtol=1e-12, atol=1e-12
        )


def test_a_graph_that_was_cut_out_keeps_its_own_numbers():
    data = small_data()
    data.n_id = torch.arange(60) + 1000
    (batch,) = NeighborLoader(data, [2], torch.tensor([7]))
    assert int(batch.n_id[0]) == 1007


def test_graph_data_says_what_the_graph_says():
    graph = synthetic_graph(num_nodes=50, num_edges=200)
    data = graph_data(graph)
    assert data.validate()
    assert data.is_undirected()
    assert torch.equal(data.test_mask.nonzero().flatten(), graph.test_index.sort()[0])
    receiver = data.edge_index[1]
    assert torch.equal(torch.bincount(receiver, minlength=50), graph.adjacency.degree)
    directed = Data(edge_index=data.edge_index)
    assert torch.equal(directed.edge_index[0], graph.adjacency.column)


DATA = small_data()
PAIR = torch.tensor([[0], [1]])


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (HeteroData(), {}, r"expected a torch_geometric.data.Data, got HeteroData"),
        (synthetic_graph(), {}, r"got Graph; a Graph becomes one by graph_data"),
        (Data(x=torch.ones(3, 1)), {}, r"expected an edge_index .* got none"),
        (Data(edge_index=torch.ones(3, 2)), {}, r"got \(3, 2\)"),
        (
            Data(x=torch.ones(2, 1), edge_index=torch.tensor([[0], [2]])),
            {},
            r"nodes of 0 .. 1, got 0 .. 2",
        ),
        (
            Data(
                x=torch.ones(2, 1, device="meta"), edge_index=torch.tensor([[0], [1]])
            ),
            {},
            r"data.x: expected it on the CPU.* got meta",
        ),
        (DATA, {"num_neighbors": []}, r"a number per layer"),
        (DATA, {"num_neighbors": [0]}, r"at least 1 \(or -1, which takes all\), got 0"),
        (DATA, {"num_neighbors": [2.5]}, r"expected a whole number, got 2.5"),
        (DATA, {"batch_size": 0}, r"batch_size: expected at least 1, got 0"),
        (DATA, {"seed": -1}, r"seed: expected at least 0, got -1"),
        (DATA, {"input_nodes": torch.ones(3, dtype=torch.bool)}, r"60 nodes, got 3"),
        (DATA, {"input_nodes": torch.ones(3)}, r"got torch.float32 of shape \(3,\)"),
        (DATA, {"input_nodes": torch.tensor([60])}, r"0 .. 59, got 60 .. 60"),
        (DATA, {"input_nodes": torch.tensor([1, 1])}, r"each node once"),
        (DATA, {"input_nodes": torch.tensor([]).long()}, r"at least one node"),
        (DATA, {"batch_size": 100, "drop_last": True}, r"at least one batch .* none"),
        (DATA, {"sampler": None}, r"sampler: no argument of NeighborLoader"),
    ],
)
def test_what_cannot_be_right_is_refused(data, options, message):
    options = {"num_neighbors": [2], **options}
    with pytest.raises((TypeError, ValueError), match=message):
        NeighborLoader(data, **options)
