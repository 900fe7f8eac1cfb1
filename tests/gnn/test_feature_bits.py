"""Tables of bits, degree buckets, and the published nominal memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from raw_archives import published

from pipeline_src.gnn.feature_bits import (
    ElementCount,
    FeatureBits,
    component_bits,
    feature_bits,
    input_elements,
    layer_bits,
    nominal_bits,
    published_gat_elements,
    quantile_split_points,
    square_root_bits,
    topology_bits,
    uniform_bits,
)
from pipeline_src.graphs.raw import read_raw_graph

# Cora: 2,708 nodes and 10,556 directed edges; how they spread does not matter here.
CORA_NODES, CORA_EDGES = 2708, 10_556
MEGABIT = 1e6


def degrees_of_cora():
    degree = torch.ones(CORA_NODES, dtype=torch.int32)
    degree[0] += CORA_EDGES - CORA_NODES
    return degree


@pytest.mark.parametrize(
    ("bits", "megabit"),
    [
        (uniform_bits(2, 32), 207.608),
        (uniform_bits(2, 16), 103.804),
        (uniform_bits(2, 1, least_attention=1), 6.488),
        (layer_bits((4, 32)), 37.648),
    ],
    ids=["32", "16", "1", "LWQ (4, 32)"],
)
def test_published_nominal_memory_of_gat_on_cora(bits, megabit):
    """The authors' notes: 8 heads of 8 channels, 6,070,004 + 417,756 elements."""
    elements = published_gat_elements(1433, 8, 8, 7)
    total = nominal_bits(bits, elements, degrees_of_cora())
    assert total / MEGABIT == pytest.approx(megabit, abs=0.0005)  # as printed


def test_published_elements_of_gat_on_cora():
    first, second = published_gat_elements(1433, 8, 8, 7)
    for layer, expected in ((first, 6_070_004), (second, 417_756)):
        one_layer = nominal_bits(uniform_bits(1, 32), (layer,), degrees_of_cora())
        assert one_layer == 32 * expected


@pytest.mark.parametrize(
    ("widths", "megabytes"),
    [((1433, 16), 15.70), ((1433, 16, 16, 16), 16.04), ((1433, 64), 16.22)],
    ids=["gcn", "agnn", "gat"],
)
def test_node_only_memory_is_that_of_the_reference(widths, megabytes):
    bits = uniform_bits(len(widths), 32)
    total = nominal_bits(bits, input_elements(widths), degrees_of_cora())
    assert total / 8e6 == pytest.approx(megabytes, abs=0.005)


@pytest.mark.parametrize(
    ("graph", "source", "averages"),
    [
        ("cora", "Cora", (25.43, 15.86, 7.99)),
        ("citeseer", "CiteSeer", (28.49, 15.93, 8.00)),
    ],
)
def test_square_root_rule_hardly_compresses_citation_graphs(graph, source, averages):
    """Average bits of the reference for the sets up to 32, 16 and 8; real files."""
    degree = read_raw_graph(graph, published(source)).adjacency.degree
    for widest, average in zip((32, 16, 8), averages, strict=True):
        allowed = tuple(bits for bits in (1, 2, 4, 8, 16, 32) if bits <= widest)
        bits = square_root_bits(1, allowed)
        total = nominal_bits(bits, input_elements((1,)), degree)
        assert total / degree.numel() == pytest.approx(average, abs=0.005)


def test_square_root_rule_is_the_formula_at_every_degree():
    rule = square_root_bits(1, least_attention=1)
    degree = torch.arange(3000)
    widths = torch.tensor(rule.bits(0, "combination"))[rule.bucket(degree)]
    for d, bits in enumerate(widths.tolist()):
        target = 32 if d <= 1 else max(2, 32 / d**0.5) if d <= 1024 else 2
        assert bits == min(b for b in (1, 2, 4, 8, 16, 32) if b >= target)


def test_granularities_are_tables():
    assert uniform_bits(2, 2, (5,)).table == (((4, 4), (2, 2)),) * 2
    assert layer_bits((4, 32)).table == (((4,), (4,)), ((32,), (32,)))
    assert component_bits(2, attention=8, combination=1).table == (((8,), (1,)),) * 2
    rising = topology_bits(1, (4, 16), (2, 8, 32))
    assert rising.table == (((4, 8, 32), (2, 8, 32)),)
    mixed = feature_bits(
        2,
        lambda layer, part, bucket: 2 ** (layer + bucket + (part == "attention")),
        (9,),
    )
    assert mixed.table == (((2, 4), (1, 2)), ((4, 8), (2, 4)))
    assert mixed.bits(1, "attention") == (4, 8)


@given(
    degree=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    num_buckets=st.integers(1, 6),
)
def test_quantile_buckets_are_filled_and_even_as_degrees_allow(degree, num_buckets):
    """No empty bucket, and none fuller than its share plus one degree's nodes."""
    degree = torch.tensor(degree)
    points = quantile_split_points(degree, num_buckets)
    bits = uniform_bits(1, 8, points)
    sizes = torch.bincount(bits.bucket(degree), minlength=bits.num_buckets)
    assert bits.num_buckets <= num_buckets
    assert sizes.min() > 0
    same_degree = int(torch.bincount(degree).max())
    assert sizes.max() <= -(-degree.numel() // num_buckets) + same_degree


def test_nominal_bits_weigh_nodes_and_edges_by_bucket():
    degree = torch.tensor([0, 1, 5])
    bits = FeatureBits((((4, 8), (16, 2)),), (3,))
    elements = ((ElementCount(per_node=1, per_edge=10), ElementCount(per_node=7)),)
    attention = 4 * (2 * 1 + 3 * 10) + 8 * (1 * 1 + 6 * 10)
    combination = 16 * 2 * 7 + 2 * 1 * 7
    assert nominal_bits(bits, elements, degree) == attention + combination


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uniform_bits(1, 3), r"bits must be among .* got \[3\]"),
        (lambda: uniform_bits(1, 8, (4, 4)), "increase strictly from at least 1"),
        (lambda: uniform_bits(1, 8, (0,)), "increase strictly from at least 1"),
        (lambda: FeatureBits((((8,), (8, 8)),)), "components of 1 buckets"),
        (lambda: FeatureBits((((8,),),)), "2 components"),
        (lambda: topology_bits(1, (4,), (8,)), "each of 2 buckets"),
        (lambda: quantile_split_points(torch.ones(3), 0), "num_buckets must be"),
        (
            lambda: nominal_bits(
                uniform_bits(1, 8), input_elements((1, 1)), torch.ones(1)
            ),
            "elements must be of 1 layers, got 2",
        ),
    ],
)
def test_wrong_tables_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
