"""What a search of feature bits chooses from, and what each choice costs in bytes.

A network stores *groups* of values: (layer, component, degree bucket), see
gnn/feature_bits.py. A *granularity* says which groups share a variable:

    uniform    all of them             component  those of a component
    layer      those of a layer        topology   those of a degree bucket
    combined   none

Three kinds of bytes, which differ and stand side by side:

    nominal    elements x bits / 8, the authors' measure
    packed     codes, padding, zero points, scales, and one index of nodes where a store
               holds several widths; attention values as if those of all runs were kept
    full       elements x 4

Packed bytes are worked out from shapes, one table of bytes per group and width, so a
search weighs thousands of configurations without packing any. They are those of
FeatureStore and PackedSegments to the byte (tests/features/test_space.py), with one
difference: the index, one tensor that all stores share, is counted once.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from pipeline_src.gnn.feature_bits import (
    COMPONENTS,
    ElementCount,
    Elements,
    FeatureBits,
    feature_bits,
)
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.quant.row_codes import count_words
from pipeline_src.search.space import (
    Configuration,
    SearchSpace,
    Value,
    Variable,
)

GRANULARITIES = ("uniform", "layer", "component", "topology", "combined")
# What a coarser granularity can say, a finer one can say as well.
COARSER = {
    "uniform": ("uniform",),
    "layer": ("uniform", "layer"),
    "component": ("uniform", "component"),
    "topology": ("uniform", "topology"),
    "combined": GRANULARITIES,
}
ATTENTION = COMPONENTS[0]  # accuracy breaks below some bits: a least width
_FULL_BITS = 32
_FLOAT_BYTES = 4
_INDEX_BYTES = 4  # int32 position of a node


@dataclass(frozen=True)
class Group:
    """Values that share one entry of the table of bits."""

    layer: int
    component: str
    bucket: int
    num_elements: int
    holds_rows: bool  # rows of nodes, found by their position where widths differ
    packed: dict[int, int]  # bits -> bytes

    def variable(self, granularity: str) -> str:
        """Name of the variable that the group belongs to."""
        layer, bucket = f"layer {self.layer + 1}", f"bucket {self.bucket + 1}"
        return {
            "uniform": "bits",
            "layer": layer,
            "component": self.component,
            "topology": bucket,
            "combined": f"{layer} {self.component} {bucket}",
        }[granularity]


@dataclass(frozen=True)
class FeatureSpace:
    """The groups of a network on a graph."""

    groups: tuple[Group, ...]
    num_layers: int
    num_nodes: int
    split_points: tuple[int, ...]
    candidate_bits: tuple[int, ...]
    least_attention_bits: int

    @property
    def num_elements(self) -> int:
        """Values that one forward pass stores."""
        return sum(group.num_elements for group in self.groups)

    @property
    def full_bytes(self) -> int:
        """Bytes of all values as float32."""
        return _FLOAT_BYTES * self.num_elements

    def table(self, granularity: str, configuration: Configuration) -> FeatureBits:
        """Bits of each group; what the network does not store gets 32."""
        bits = {
            (group.layer, group.component, group.bucket): self._allowed(
                group, configuration[group.variable(granularity)]
            )
            for group in self.groups
        }
        return feature_bits(
            self.num_layers,
            lambda *place: bits.get(place, _FULL_BITS),
            self.split_points,
        )

    def uniform(self, bits: int) -> FeatureBits:
        """One width everywhere, attention as wide as it must be."""
        return self.table("uniform", {"bits": bits})

    def nominal_bytes(self, bits: FeatureBits) -> float:
        """Elements times bits / 8."""
        return sum(
            group.num_elements * self._width(group, bits) / 8 for group in self.groups
        )

    def average_bits(self, bits: FeatureBits) -> float:
        """Nominal bits per element."""
        return 8 * self.nominal_bytes(bits) / self.num_elements

    def packed_bytes(self, bits: FeatureBits) -> int:
        """Bytes as they are kept."""
        stores: dict[tuple[int, str], set[int]] = {}
        total = 0
        for group in self.groups:
            width = self._width(group, bits)
            if group.holds_rows:
                stores.setdefault((group.layer, group.component), set()).add(width)
            total += group.packed[width]
        mixed = any(len(widths) > 1 for widths in stores.values())
        return total + (_INDEX_BYTES * self.num_nodes if mixed else 0)

    def search_space(self, granularity: str, memory: str) -> SearchSpace:
        """Variables of a granularity; memory is "packed" or "nominal"."""
        members: dict[str, list[Group]] = {}
        for group in self.groups:
            members.setdefault(group.variable(granularity), []).append(group)
        count = self.packed_bytes if memory == "packed" else self.nominal_bytes
        return SearchSpace(
            tuple(
                Variable(
                    name,
                    self._values(groups),
                    float(sum(group.num_elements for group in groups)),
                )
                for name, groups in members.items()
            ),
            lambda configuration: count(self.table(granularity, configuration)),
        )

    def _values(self, groups: list[Group]) -> tuple[int, ...]:
        """Candidate bits that the groups can tell apart."""
        if any(group.component != ATTENTION for group in groups):
            return self.candidate_bits
        return tuple(b for b in self.candidate_bits if b >= self.least_attention_bits)

    def _allowed(self, group: Group, value: Value) -> int:
        bits, attends = int(value), group.component == ATTENTION
        return max(bits, self.least_attention_bits) if attends else bits

    @staticmethod
    def _width(group: Group, bits: FeatureBits) -> int:
        return bits.bits(group.layer, group.component)[group.bucket]


def feature_space(
    elements: Elements,
    plan: MessagePlan,  # with the buckets of split_points
    split_points: tuple[int, ...],
    candidate_bits: tuple[int, ...],
    least_attention_bits: int,
    metadata: torch.dtype,
    attention_range: str,  # one of ATTENTION_RANGES
) -> FeatureSpace:
    """Count what a network of these elements stores, for each candidate width."""
    num_buckets = len(split_points) + 1
    sizes = (plan.num_nodes,) if plan.groups is None else plan.groups.sizes
    runs: list[list[tuple[int, int]]] = [[] for _ in range(num_buckets)]
    for bucket, first, last, start, stop in plan.bounds:
        num_ranges = last - first if attention_range == "receiver" else 1
        runs[bucket].append((num_ranges, stop - start))
    groups = [
        _group(
            (layer, component, bucket),
            count,
            sizes[bucket],
            runs[bucket],
            {*candidate_bits, _FULL_BITS},
            2 * metadata.itemsize,
        )
        for layer, counts in enumerate(elements)
        for component, count in zip(COMPONENTS, counts, strict=True)
        for bucket in range(num_buckets)
        if count != ElementCount()
    ]
    return FeatureSpace(
        tuple(groups),
        len(elements),
        plan.num_nodes,
        split_points,
        candidate_bits,
        least_attention_bits,
    )


def bits_to_json(bits: FeatureBits) -> str:
    """A table of bits as text, for a record."""
    return json.dumps({"table": bits.table, "split_points": bits.split_points})


def bits_from_json(text: str) -> FeatureBits:
    """The inverse of bits_to_json.

    >>> bits = FeatureBits((((4, 4), (1, 2)),), (3,))
    >>> bits_from_json(bits_to_json(bits)) == bits
    True
    """
    values = json.loads(text)
    table = tuple(
        (tuple(attention), tuple(combination))
        for attention, combination in values["table"]
    )
    return FeatureBits(table, tuple(values["split_points"]))


def _group(
    place: tuple[int, str, int],
    count: ElementCount,
    num_nodes: int,  # of the bucket
    runs: list[tuple[int, int]],  # ranges and edges of each of its runs
    widths: Iterable[int],
    metadata_bytes: int,  # of a zero point and a scale
) -> Group:
    num_edges = sum(edges for _, edges in runs)
    packed = {}
    for bits in widths:
        packed[bits] = num_nodes * _row_bytes(count.per_node, bits, metadata_bytes)
        for ranges, edges in runs:
            values = _row_bytes(edges, bits, ranges * metadata_bytes)
            packed[bits] += count.per_edge * values
    num_elements = num_nodes * count.per_node + num_edges * count.per_edge
    return Group(*place, num_elements, count.per_node > 0, packed)


def _row_bytes(num_values: int, bits: int, metadata_bytes: int) -> int:
    """Bytes of codes that share a row, and of their metadata."""
    if num_values == 0:
        return 0
    if bits == _FULL_BITS:
        return _FLOAT_BYTES * num_values
    return count_words(num_values, bits) * (2 if bits == 16 else 1) + metadata_bytes
