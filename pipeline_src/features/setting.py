"""How the stored features of a model on a graph are packed, but for their bits."""

from dataclasses import dataclass

import torch

from pipeline_src.features.networks import new_network
from pipeline_src.features.plans import FeatureSearch, FeatureTraining
from pipeline_src.features.space import FeatureSpace, feature_space
from pipeline_src.gnn.feature_bits import (
    FeatureBits,
    quantile_split_points,
    uniform_bits,
)
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.gnn.quantized_points import QuantizedPoints
from pipeline_src.graphs.graph import Graph
from pipeline_src.quant.feature_store import RowPacking

METADATA = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class FeatureSetting:
    """Bytes of each choice of bits, edges by degree bucket, and how rows are packed."""

    space: FeatureSpace
    plan: MessagePlan
    packing: RowPacking
    input_range: str
    attention_range: str

    @classmethod
    def of(
        cls,
        training: FeatureTraining,
        graph: Graph,
        search: FeatureSearch,
        compile: str,
    ) -> "FeatureSetting":
        """Split the nodes by in-degree and count what the network stores on them."""
        metadata = METADATA[search.metadata]
        points = quantile_split_points(graph.adjacency.degree, search.degree_buckets)
        network = new_network(training, graph)
        one_width = uniform_bits(network.num_layers, 32, points)
        plan = MessagePlan.of(graph.adjacency, one_width, network.gathered_width)
        space = feature_space(
            network.elements(),
            plan,
            points,
            search.candidate_bits,
            search.least_attention_bits,
            metadata,
            search.attention_range,
        )
        packing = RowPacking(metadata=metadata, compile=compile)
        return cls(space, plan, packing, search.input_range, search.attention_range)

    def points(self, bits: FeatureBits) -> QuantizedPoints:
        """What a forward pass with these bits takes."""
        return QuantizedPoints(
            bits, self.packing, self.input_range, self.attention_range
        )
