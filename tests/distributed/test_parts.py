"""A partition names every node once, and parts hold the whole graph between them."""

import itertools
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_graphs import small_graphs

from pipeline_src.distributed.partition import check_partition, cut_edges, partition
from pipeline_src.distributed.parts import cut
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.graphs.graph import Adjacency, adjacency_from_edges

GRAPH = synthetic_graph(60, 200, 5, 3, seed=1)


@st.composite
def parted_graphs(draw):
    graph = draw(
        small_graphs().filter(lambda one: all(x.numel() for x in one.splits.values()))
    )
    num_parts = draw(st.integers(1, min(4, graph.num_nodes)))
    order = draw(st.permutations(range(graph.num_nodes)))
    owner = torch.tensor(order) % num_parts
    return graph, owner, num_parts


def edges_of(adjacency: Adjacency):
    row = torch.arange(adjacency.num_nodes).repeat_interleave(adjacency.degree.long())
    return set(zip(row.tolist(), adjacency.column.tolist(), strict=True))


def halo_nodes(parts):
    """Halo of each part in the whole graph's numbers, by what the others send."""
    sent = [one.nodes[one.sent].split(one.num_sent) for one in parts]
    return [torch.cat([rows[one.rank] for rows in sent]) for one in parts]


@settings(max_examples=30)
@given(parted_graphs())
def test_parts_hold_every_edge_once(case):
    """Own and halo columns, read in the whole graph's numbers, are its edges."""
    graph, owner, num_parts = case
    parts = list(cut(graph, owner, num_parts))
    found = []
    for part, halo in zip(parts, halo_nodes(parts), strict=True):
        assert torch.equal(owner[part.nodes], torch.full_like(part.nodes, part.rank))
        for pointer, column, names in (
            (part.inside_pointer, part.inside_column, part.nodes),
            (part.across_pointer, part.across_column, halo),
        ):
            row = torch.arange(part.num_own).repeat_interleave(pointer.diff().long())
            receiver, sender = part.nodes[row], names[column.long()]
            found += zip(receiver.tolist(), sender.tolist(), strict=True)
    assert len(found) == len(set(found))
    assert set(found) == edges_of(graph.adjacency)
    across = sum(part.across_column.numel() for part in parts)
    assert across == cut_edges(graph.adjacency, owner)


@settings(max_examples=30)
@given(parted_graphs())
def test_a_halo_holds_each_foreign_sender_once(case):
    graph, owner, num_parts = case
    parts = list(cut(graph, owner, num_parts))
    edges = edges_of(graph.adjacency)
    for part, halo in zip(parts, halo_nodes(parts), strict=True):
        foreign = {
            sender
            for receiver, sender in edges
            if owner[receiver] == part.rank != owner[sender]
        }
        assert sorted(halo.tolist()) == sorted(foreign)
        assert part.num_received == tuple(one.num_sent[part.rank] for one in parts)


@settings(max_examples=30)
@given(parted_graphs())
def test_nodes_bring_their_rows_along(case):
    graph, owner, num_parts = case
    parts = list(cut(graph, owner, num_parts))
    together = torch.cat([part.nodes for part in parts])
    assert torch.equal(together.sort().values, torch.arange(graph.num_nodes))
    for part, halo in zip(parts, halo_nodes(parts), strict=True):
        known = torch.cat([part.nodes, halo])
        edges = edges_of(graph.adjacency)
        loops = torch.tensor([(n, n) in edges for n in known.tolist()])
        assert torch.equal(part.features, graph.features[part.nodes])
        assert torch.equal(part.labels, graph.labels[part.nodes])
        assert torch.equal(part.degree, graph.adjacency.degree[known])
        assert torch.equal(part.has_loop, loops.bool())
    for name, index in graph.splits.items():
        found = torch.cat([part.nodes[part.splits[name]] for part in parts])
        assert torch.equal(found.sort().values, index.sort().values)


@pytest.mark.parametrize("num_parts", [1, 2, 3, 60])
def test_ranges_are_neighbours_of_nearly_equal_size(num_parts):
    owner = partition(GRAPH.adjacency, num_parts, "range")
    assert (owner.diff() >= 0).all()
    sizes = owner.bincount()
    assert sizes.numel() == num_parts
    assert sizes.max() - sizes.min() <= 1


def test_metis_cuts_fewer_edges_than_ranges():
    """Of a ring of cliques whose numbers are mixed: three cuts for three parts."""
    pytest.importorskip("pymetis", reason="comes with the extra partition")
    order = torch.arange(36) * 5 % 36
    cliques = [range(start, start + 6) for start in range(0, 36, 6)]
    pairs = [pair for one in cliques for pair in itertools.permutations(one, 2)]
    pairs += [(i, (i + 1) % 36) for i in range(5, 36, 6)]
    sender, receiver = order[torch.tensor(pairs)].T.numpy()
    # Directed between cliques, and with loops, of which METIS takes neither.
    adjacency = adjacency_from_edges(sender, receiver, 36, symmetrize=False)
    owner = partition(adjacency, 3, "metis")
    assert owner.bincount().tolist() == [12, 12, 12]
    assert cut_edges(adjacency, owner) == 3
    assert cut_edges(adjacency, partition(adjacency, 3, "range")) > 3


def test_what_no_rank_can_take_is_refused():
    with pytest.raises(ValueError, match=r"one of \('range', 'metis'\), got 'random'"):
        partition(GRAPH.adjacency, 2, "random")
    with pytest.raises(ValueError, match="makes 1 to 60 parts, got 61; start fewer"):
        partition(GRAPH.adjacency, 61, "range")
    owner = partition(GRAPH.adjacency, 2, "range")
    with pytest.raises(ValueError, match=r"ranks \[2\] of 3 got none; start fewer"):
        check_partition(owner, 60, 3)
    with pytest.raises(ValueError, match=r"ranks 0 .. 0, got 0 .. 1"):
        check_partition(owner, 60, 1)
    with pytest.raises(ValueError, match="each of 61 nodes, got shape"):
        check_partition(owner, 61, 2)
    with pytest.raises(TypeError, match="must be int64"):
        check_partition(owner.int(), 60, 2)


def test_without_metis_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(ModuleNotFoundError, match=r"pipeline-src\[partition\]'"):
        partition(GRAPH.adjacency, 2, "metis")
