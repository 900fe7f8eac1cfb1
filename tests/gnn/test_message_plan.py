"""Runs of receivers: every edge once, in its bucket, within the budget of floats."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_graphs import dense, edge_lists

from pipeline_src.gnn.feature_bits import uniform_bits
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.graphs.graph import adjacency_from_edges
from pipeline_src.quant.feature_store import FeatureStore


@given(
    edges=edge_lists(),
    symmetrize=st.booleans(),
    split_points=st.sampled_from([(), (2,), (1, 3)]),
    run_values=st.sampled_from([1, 8, 100]),
)
def test_runs_hold_every_edge_once_and_one_loop_per_node(
    edges, symmetrize, split_points, run_values
):
    num_nodes, source, target = edges
    adjacency = adjacency_from_edges(source, target, num_nodes, symmetrize=symmetrize)
    bits = uniform_bits(1, 8, split_points)
    width = 2
    plan = MessagePlan.of(adjacency, bits, width, run_values)
    bucket = bits.bucket(adjacency.degree)
    seen = torch.zeros(num_nodes, num_nodes, dtype=torch.int64)
    for run in plan.runs():
        assert torch.all(bucket[run.receivers] == run.bucket)
        assert run.senders.numel() * width <= run_values or len(run.receivers) == 1
        assert torch.equal(
            torch.bincount(run.owner, minlength=len(run.receivers)), run.pointer.diff()
        )
        ones = torch.ones(run.owner.numel(), dtype=torch.int64)
        where = (run.receivers[run.owner], run.senders.long())
        seen.index_put_(where, ones, accumulate=True)
    expected = torch.from_numpy(dense(adjacency)).fill_diagonal_(1)
    assert torch.equal(seen, expected)


@given(edges=edge_lists(), run_values=st.sampled_from([1, 7, 100]), grad=st.booleans())
def test_rows_and_received_come_back_in_node_order(edges, run_values, grad):
    num_nodes, source, target = edges
    adjacency = adjacency_from_edges(source, target, num_nodes)
    plan = MessagePlan.of(adjacency, uniform_bits(1, 8, (2, 3)), 1, run_values)
    x = torch.arange(3.0 * num_nodes).view(num_nodes, 3)
    with torch.set_grad_enabled(grad):
        doubled = plan.by_rows(FeatureStore.full(x), lambda rows: 2 * rows)
        itself = plan.receive(lambda run: x[run.receivers])
    assert torch.equal(doubled, 2 * x)
    assert torch.equal(itself, x)


@given(
    edges=edge_lists(),
    split_points=st.sampled_from([(), (2,), (1, 3)]),
    run_values=st.sampled_from([1, 4, 9, 100]),
)
def test_other_runs_are_those_of_a_new_plan(edges, split_points, run_values):
    """Some longer than the graph has edges, some shorter."""
    num_nodes, source, target = edges
    adjacency = adjacency_from_edges(source, target, num_nodes)
    bits = uniform_bits(1, 8, split_points)
    plan = MessagePlan.of(adjacency, bits, 2, 8).in_runs_of(run_values)
    again = MessagePlan.of(adjacency, bits, 2, run_values)
    assert (plan.bounds, plan.run_values) == (again.bounds, again.run_values)
    assert torch.equal(plan.column, again.column)
