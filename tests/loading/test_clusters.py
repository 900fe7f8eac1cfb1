"""Parts of a graph, and batches of them, against the definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_batches import same, same_batches, small_data
from made_up_graphs import edge_lists
from torch_geometric.data import Data

from pipeline_src import ClusterLoader, digits_graph, graph_data, partition_graph
from pipeline_src.loading.clusters import closest


@settings(max_examples=60, deadline=None)
@given(edge_lists(), st.integers(1, 12), st.integers(0, 3))
def test_parts_hold_every_node_once_and_are_of_equal_size(edges, num_parts, seed):
    num_nodes, source, target = edges
    num_parts = min(num_parts, num_nodes)
    data = Data(edge_index=torch.tensor(np.stack([source, target])))
    data.num_nodes = num_nodes
    parts = partition_graph(data, num_parts, seed=seed)
    sizes = parts.bincount(minlength=num_parts)
    assert len(parts) == num_nodes
    assert len(sizes) == num_parts
    assert int(sizes.max() - sizes.min()) <= 1
    assert torch.equal(parts, partition_graph(data, num_parts, seed=seed))
    data.edge_index = data.edge_index.flip(0)
    assert torch.equal(parts, partition_graph(data, num_parts, seed=seed))


def test_parts_of_a_ring_are_arcs():
    """Each begins where the last left off or where there is room: few edges are cut."""
    ring = torch.arange(60)
    data = Data(edge_index=torch.stack([ring, ring.roll(1)]), num_nodes=60)
    (whole,) = partition_graph(data, 1).unique().tolist()
    assert whole == 0
    parts = partition_graph(data, 2)
    inside = parts == parts.roll(1)
    assert int((~inside).sum()) == 2


def test_components_that_fill_a_part_are_never_cut():
    """Ten cliques of eight: every start grows to its whole clique, and to no other."""
    clique = torch.ones(8, 8).triu(1).nonzero()
    edges = torch.cat([clique + 8 * number for number in range(10)]).t()
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    parts = partition_graph(Data(edge_index=order[edges], num_nodes=80), 10)
    assert (parts[order].reshape(10, 8) == parts[order].reshape(10, 8)[:, :1]).all()


def test_from_a_ring_that_is_too_large_come_the_nodes_with_most_edges():
    ring = np.array([3, 1, 1, 4, 2, 2, 2, 1, 2, 4])
    assert closest(ring, 1).tolist() == [2]
    assert sorted(closest(ring, 2).tolist()) == [1, 2]
    assert sorted(closest(ring, 3).tolist()) == [1, 2, 4]
    assert sorted(closest(ring, 9).tolist()) == [1, 2, 3, 4]


def test_more_edges_stay_inside_than_chance_gives():
    data = graph_data(digits_graph())
    parts = partition_graph(data, 20)
    sender, receiver = data.edge_index
    inside = (parts[sender] == parts[receiver]).float().mean()
    # A part that knows nothing of edges keeps a twentieth.
    assert inside > 0.5


def test_batches_join_parts_with_the_edges_among_them():
    data = small_data()
    parts = torch.arange(60) % 7 * 10  # any numbers do
    loader = ClusterLoader(data, parts, batch_size=3, shuffle=True)
    assert len(loader) == 3
    orders = []
    for _ in range(2):
        seen = []
        for batch in loader:
            chosen = parts[batch.n_id].unique()
            inside = torch.isin(parts, chosen)
            assert torch.equal(batch.n_id, inside.nonzero().flatten())
            both = inside[data.edge_index].all(dim=0)
            assert torch.equal(batch.e_id.sort().values, both.nonzero().flatten())
            ends = batch.n_id[batch.edge_index]
            assert torch.equal(ends, data.edge_index[:, batch.e_id])
            assert torch.equal(batch.edge_attr, batch.e_id)
            seen.append(chosen)
        assert [len(chosen) for chosen in seen] == [3, 3, 1]
        assert torch.cat(seen).sort().values.tolist() == list(range(0, 70, 10))
        orders.append(torch.cat(seen).tolist())
    assert orders[0] != orders[1]


def test_batches_depend_on_seed_epoch_and_place_alone():
    data = small_data()
    parts = partition_graph(data, 10)
    loader = ClusterLoader(data, parts, batch_size=2, shuffle=True)
    first, second = list(loader), list(loader)
    again = ClusterLoader(data, parts, batch_size=2, shuffle=True, num_workers=2)
    assert same_batches(first, again)
    assert same_batches(second, again)
    plain = ClusterLoader(data, parts, batch_size=2)
    assert same(*(next(iter(plain)) for _ in range(2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: partition_graph(data, 0), "num_parts: expected at least 1"),
        (lambda data: partition_graph(data, 61), "at most 60, the number of nodes"),
        (
            lambda data: ClusterLoader(data, torch.zeros(3).long()),
            r"one for each node, got torch.int64 of shape \(3,\)",
        ),
        (lambda data: ClusterLoader(data, torch.zeros(60)), "got torch.float32"),
        (
            lambda data: ClusterLoader(data, torch.zeros(60).long(), 0),
            "batch_size: expected at least 1",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(small_data())
