"""Bytes worked out from shapes are those that packing leaves, for any bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_src.features.space import (
    COARSER,
    GRANULARITIES,
    bits_from_json,
    bits_to_json,
    feature_space,
)
from pipeline_src.gnn.feature_bits import (
    nominal_bits,
    quantile_split_points,
    uniform_bits,
)
from pipeline_src.gnn.feature_network import MODELS, FeatureNetwork
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.gnn.quantized_points import QuantizedPoints
from pipeline_src.graphs.embedded import synthetic_graph
from pipeline_src.quant.feature_store import RowPacking

GRAPH = synthetic_graph(
    num_nodes=150, num_edges=900, num_features=19, num_classes=3, seed=2
)
BITS = (1, 2, 4, 8, 16, 32)
LEAST = 4
INDEX = 4 * GRAPH.num_nodes  # bytes of the position of each node
RUN_VALUES = 2000  # several runs in each bucket


def space_of(model, num_buckets, metadata=torch.bfloat16, shared="receiver"):
    torch.manual_seed(0)
    network = FeatureNetwork(model, GRAPH.num_features, GRAPH.num_classes)
    points = quantile_split_points(GRAPH.adjacency.degree, num_buckets)
    table = uniform_bits(network.num_layers, 32, points)
    width = network.gathered_width
    plan = MessagePlan.of(GRAPH.adjacency, table, width, RUN_VALUES)
    space = feature_space(
        network.elements(), plan, points, BITS, LEAST, metadata, shared
    )
    return network, plan, space


def configurations(space, granularity):
    variables = space.search_space(granularity, "packed").variables
    return st.fixed_dictionaries(
        {variable.name: st.sampled_from(variable.values) for variable in variables}
    )


@pytest.mark.parametrize(
    ("metadata", "shared"),
    [
        (torch.float32, "receiver"),
        (torch.bfloat16, "receiver"),
        (torch.bfloat16, "tensor"),
    ],
    ids=str,
)
@pytest.mark.parametrize("num_buckets", [1, 3])
@pytest.mark.parametrize("model", MODELS)
def test_bytes_from_shapes_are_those_that_packing_leaves(
    model, num_buckets, metadata, shared
):
    """The index of nodes is one tensor, which each store of several widths reports."""
    network, plan, space = space_of(model, num_buckets, metadata, shared)
    assert plan.groups is None or len(plan.groups.sizes) == num_buckets
    packing = RowPacking(metadata=metadata, compile="false")

    @settings(max_examples=10)
    @given(configuration=configurations(space, "combined"))
    def check(configuration):
        bits = space.table("combined", configuration)
        recorded = []
        points = QuantizedPoints(
            bits,
            packing,
            attention_range=shared,
            record=lambda name, nbytes: recorded.append((name, nbytes)),
        )
        network.eval()
        with torch.no_grad():
            network(GRAPH.features, plan, points)
        stores = {(g.layer, g.component) for g in space.groups if g.holds_rows}
        mixed = sum(len(set(bits.bits(*store))) > 1 for store in stores)
        total = sum(nbytes for _, nbytes in recorded)
        assert space.packed_bytes(bits) == total - max(mixed - 1, 0) * INDEX

    check()


@pytest.mark.parametrize("model", MODELS)
def test_nominal_bytes_are_the_authors_measure(model):
    network, _, space = space_of(model, 2)
    degree = GRAPH.adjacency.degree
    for width in BITS:
        bits = space.uniform(width)
        expected = nominal_bits(bits, network.elements(), degree)
        assert 8 * space.nominal_bytes(bits) == expected
    assert space.average_bits(space.uniform(32)) == 32
    assert space.full_bytes == space.packed_bytes(space.uniform(32))


def test_attention_is_never_narrower_than_allowed():
    _, _, space = space_of("gat", 2)
    one = space.uniform(1)
    for layer in range(space.num_layers):
        assert set(one.bits(layer, "attention")) == {LEAST}
        assert set(one.bits(layer, "combination")) == {1}
    for variable in space.search_space("combined", "packed").variables:
        least = LEAST if "attention" in variable.name else 1
        assert min(variable.values) == least


def test_granularities_share_what_their_names_say():
    """Two layers, two components, three buckets: 1, 2, 2, 3 and 12 variables."""
    _, _, space = space_of("gcn", 3)
    sizes = [len(space.search_space(g, "packed").variables) for g in GRANULARITIES]
    assert sizes == [1, 2, 2, 3, 12]
    layers = space.table("layer", {"layer 1": 2, "layer 2": 8})
    assert layers.bits(0, "combination") == (2, 2, 2)
    assert layers.bits(1, "attention") == (8, 8, 8)
    buckets = {"bucket 1": 1, "bucket 2": 4, "bucket 3": 16}
    assert space.table("topology", buckets).bits(1, "combination") == (1, 4, 16)
    assert set(COARSER["combined"]) == set(GRANULARITIES)


def test_layers_without_attention_have_no_variable():
    """Of AGNN's four layers only two propagate."""
    _, _, space = space_of("agnn", 1)
    names = [v.name for v in space.search_space("combined", "packed").variables]
    assert len(names) == 4 + 2
    assert not [name for name in names if name.startswith("layer 1 attention")]
    bits = space.uniform(2)
    assert bits.bits(0, "attention") == (32,)
    assert bits_from_json(bits_to_json(bits)) == bits
