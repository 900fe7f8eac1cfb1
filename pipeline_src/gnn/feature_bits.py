"""How many bits each stored feature gets: a table, and its nominal memory (SGQuant).

Feng et al. 2020 (arXiv:2007.05100) vary the width of stored features by layer, by
component of the layer and by the in-degree of the node. All their granularities, and
any mixture, are one table: (layer, component, degree bucket) -> bits. What the
components hold follows the released code (commit 92e2f3d6, `aggr_bit`, `compute_bit`):

    combination  the features that a layer reads
    attention    what its aggregation reads per edge: rows of neighbours, and the
                 attention values themselves

A degree bucket is an interval of in-degree between split points: bucket b holds the
nodes with split_points[b - 1] <= degree < split_points[b]. Whether many neighbours ask
for fewer bits (SGQuant: errors average out) or for more (A2Q, Degree-Quant: sums grow)
is a row of the table, not a rule of this module.

Nominal memory is the authors' measure: elements of all feature tensors of one forward
pass times their bits, nothing freed, no scales and no indices.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_src.quant.feature_store import STORABLE_BITS

COMPONENTS = ("attention", "combination")
# Attention values lie in 0 .. 1 with most near 0; below 4 bits accuracy falls.
LEAST_ATTENTION_BITS = 4
# The preset of topo_quant.py: full width up to degree 1, 2 bits above degree 1,024.
_FULL_BITS, _FULL_DEGREE = 32, 1
_LEAST_BITS, _LEAST_DEGREE = 2, 1024

# (layer from 0, component, degree bucket from 0) -> bits
BitsRule = Callable[[int, str, int], int]


@dataclass(frozen=True)
class FeatureBits:
    """Bits of each group (layer, component, degree bucket).

    Raises:
        ValueError: if a width is not one of STORABLE_BITS, the table has not one
            width per bucket, or split points do not increase from 1 or more.
    """

    # [layer][component, in the order of COMPONENTS][bucket]
    table: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    split_points: tuple[int, ...] = ()  # in-degrees at which a new bucket starts

    def __post_init__(self) -> None:
        points = self.split_points
        if any(a >= b for a, b in zip((0, *points), points, strict=False)):
            raise ValueError(
                f"split_points must increase strictly from at least 1, got {points}"
            )
        for layer in self.table:
            for bits in layer:
                if len(layer) != len(COMPONENTS) or len(bits) != len(points) + 1:
                    raise ValueError(
                        f"each layer must hold {len(COMPONENTS)} components of "
                        f"{len(points) + 1} buckets, got {layer}"
                    )
                if unknown := set(bits) - set(STORABLE_BITS):
                    raise ValueError(
                        f"bits must be among {STORABLE_BITS}, got {sorted(unknown)}"
                    )

    @property
    def num_layers(self) -> int:
        """Layers of the network that the table is for."""
        return len(self.table)

    @property
    def num_buckets(self) -> int:
        """Degree buckets, of which some may hold no node."""
        return len(self.split_points) + 1

    def bits(self, layer: int, component: str) -> tuple[int, ...]:
        """Widths of the buckets, for a layer from 0."""
        return self.table[layer][COMPONENTS.index(component)]

    def bucket(self, degree: Tensor) -> Tensor:
        """The degree bucket of each node, int64, from in-degrees.

        >>> table = uniform_bits(1, 8, split_points=(4, 16))
        >>> table.bucket(torch.tensor([0, 3, 4, 15, 16])).tolist()
        [0, 0, 1, 1, 2]
        """
        points = torch.tensor(self.split_points, device=degree.device)
        return torch.bucketize(degree.long(), points.long(), right=True)


def feature_bits(
    num_layers: int, rule: BitsRule, split_points: tuple[int, ...] = ()
) -> FeatureBits:
    """Any combination: the table of a rule.

    >>> rule = lambda layer, component, bucket: 8 if component == "attention" else 4
    >>> feature_bits(1, rule).table
    (((8,), (4,)),)
    """
    buckets = range(len(split_points) + 1)

    def row(layer: int, component: str) -> tuple[int, ...]:
        return tuple(rule(layer, component, bucket) for bucket in buckets)

    attention, combination = COMPONENTS
    table = tuple(
        (row(layer, attention), row(layer, combination)) for layer in range(num_layers)
    )
    return FeatureBits(table, split_points)


def uniform_bits(
    num_layers: int,
    bits: int,
    split_points: tuple[int, ...] = (),
    least_attention: int = LEAST_ATTENTION_BITS,
) -> FeatureBits:
    """One width everywhere; attention gets at least least_attention bits."""
    return layer_bits((bits,) * num_layers, split_points, least_attention)


def layer_bits(
    bits: tuple[int, ...],  # one per layer
    split_points: tuple[int, ...] = (),
    least_attention: int = LEAST_ATTENTION_BITS,
) -> FeatureBits:
    """One width per layer (LWQ).

    >>> layer_bits((2, 32)).table
    (((4,), (2,)), ((32,), (32,)))
    """
    least = {"attention": least_attention, "combination": 1}
    return feature_bits(
        len(bits),
        lambda layer, component, _: max(bits[layer], least[component]),
        split_points,
    )


def component_bits(num_layers: int, attention: int, combination: int) -> FeatureBits:
    """One width per component (CWQ)."""
    bits = {"attention": attention, "combination": combination}
    return feature_bits(num_layers, lambda _, component, __: bits[component])


def topology_bits(
    num_layers: int,
    split_points: tuple[int, ...],
    bits: tuple[int, ...],  # one per bucket, from few neighbours to many
    least_attention: int = LEAST_ATTENTION_BITS,
) -> FeatureBits:
    """One width per degree bucket (TAQ), falling or rising with the degree."""
    if len(bits) != len(split_points) + 1:
        raise ValueError(
            f"bits must hold one width for each of {len(split_points) + 1} buckets, "
            f"got {bits}"
        )
    least = {"attention": least_attention, "combination": 1}
    return feature_bits(
        num_layers,
        lambda _, component, bucket: max(bits[bucket], least[component]),
        split_points,
    )


def square_root_bits(
    num_layers: int,
    allowed: tuple[int, ...] = STORABLE_BITS,
    least_attention: int = LEAST_ATTENTION_BITS,
) -> FeatureBits:
    """The released topology rule: 32 / sqrt(in-degree), rounded up to allowed widths.

    32 bits up to degree 1, never below 2, and 2 above degree 1,024; where no allowed
    width is large enough, the largest (topo_quant.py).

    >>> rule = square_root_bits(1)
    >>> rule.split_points, rule.bits(0, "combination")
    ((4, 16, 64, 256), (32, 16, 8, 4, 2))
    """
    widths = sorted(allowed)
    starts: list[int] = []
    bits: list[int] = []
    for degree in range(_LEAST_DEGREE + 2):
        target = float(_FULL_BITS)
        if degree > _FULL_DEGREE:
            target = max(_LEAST_BITS, _FULL_BITS / math.sqrt(degree))
        if degree > _LEAST_DEGREE:
            target = _LEAST_BITS
        width = next((width for width in widths if width >= target), widths[-1])
        if not bits or width != bits[-1]:
            starts.append(degree)
            bits.append(width)
    return topology_bits(num_layers, tuple(starts[1:]), tuple(bits), least_attention)


def quantile_split_points(degree: Tensor, num_buckets: int) -> tuple[int, ...]:
    """Split points that share the nodes as evenly as whole degrees allow.

    Degrees that many nodes have can make fewer buckets than asked for.

    >>> quantile_split_points(torch.tensor([1, 1, 2, 2, 3, 9]), 3)
    (2, 3)
    """
    if num_buckets < 1:
        raise ValueError(f"num_buckets must be at least 1, got {num_buckets}")
    ranked = degree.sort().values.tolist()
    ends = [len(ranked) * k // num_buckets for k in range(1, num_buckets)]
    return tuple(sorted({ranked[end] for end in ends} - {ranked[0], 0}))


@dataclass(frozen=True)
class ElementCount:
    """Values of the feature tensors of one component of one layer."""

    per_node: int = 0
    per_edge: int = 0  # entries of the adjacency and one self loop per node


# [layer][component, in the order of COMPONENTS]
Elements = tuple[tuple[ElementCount, ElementCount], ...]


def published_gat_elements(
    num_features: int, heads: int, channels: int, num_classes: int
) -> Elements:
    """Elements of a GAT of two layers as the authors count them (their Qgat.py notes).

    Combination: input and output of the matrix product. Attention: the gathered rows
    of both ends of each edge, and three copies of the attention values: raw scores,
    after LeakyReLU, after softmax.
    """
    width = heads * channels

    def layer(inputs: int, outputs: int, heads: int) -> tuple[ElementCount, ...]:
        attention = ElementCount(per_edge=2 * outputs + 3 * heads)
        return attention, ElementCount(per_node=inputs + outputs)

    first, second = layer(num_features, width, heads), layer(width, num_classes, 1)
    return ((first[0], first[1]), (second[0], second[1]))


def input_elements(widths: tuple[int, ...]) -> Elements:
    """Elements where only the input of each layer counts: the node-only convention."""
    return tuple((ElementCount(), ElementCount(per_node=width)) for width in widths)


def nominal_bits(bits: FeatureBits, elements: Elements, degree: Tensor) -> int:
    """Bits of all elements, by the degree of the node or of the edge's receiver.

    Args:
        bits: the table.
        elements: of each of its layers.
        degree: in-degree of each node, without self loops; bytes are an eighth.

    Raises:
        ValueError: if table and elements do not have the same layers.
    """
    if len(elements) != bits.num_layers:
        raise ValueError(
            f"elements must be of {bits.num_layers} layers, got {len(elements)}"
        )
    bucket = bits.bucket(degree)
    nodes = torch.bincount(bucket, minlength=bits.num_buckets).tolist()
    edges = torch.zeros(bits.num_buckets, dtype=torch.int64, device=degree.device)
    edges.index_add_(0, bucket, degree.long() + 1)  # self loops
    edges_in = edges.tolist()
    return sum(
        width * (count.per_node * nodes[b] + count.per_edge * edges_in[b])
        for counts, layer in zip(elements, bits.table, strict=True)
        for count, widths in zip(counts, layer, strict=True)
        for b, width in enumerate(widths)
    )
