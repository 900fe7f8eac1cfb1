"""A network by the name of its class, as a run trains it."""

import importlib
import json
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.utils import to_torch_csr_tensor

from pipeline_src.gnn.pyg.aggregation import PygAggregation
from pipeline_src.gnn.pyg.technique import Technique
from pipeline_src.gnn.shape import ClassShape
from pipeline_src.graphs.graph import Adjacency
from pipeline_src.quant.dtypes import as_float32


class ClassNetwork(nn.Module):
    """model(x, edge_index) of any class that takes in_channels and out_channels."""

    num_seeds = 0  # a step needs none

    def __init__(self, shape: ClassShape, technique: Technique) -> None:
        """Build with parameters drawn from torch's global generator.

        Raises:
            ValueError: if the class cannot be found, is no network, or refuses its
                arguments.
        """
        super().__init__()
        self.shape = shape
        self.layer = shape.class_name
        self.technique = technique
        self.activation_names: list[str] = []
        arguments = json.loads(shape.arguments)
        sizes = {"in_channels": shape.num_features, "out_channels": shape.num_classes}
        try:
            model = _class(shape.class_name)(**{**sizes, **arguments})
        except Exception as error:
            raise ValueError(
                f"{shape.class_name} cannot be made with {sizes | arguments}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"{shape.class_name}: expected a subclass of torch.nn.Module, got "
                f"{type(model).__name__}"
            )
        self.model: nn.Module = model

    def aggregation(self, adjacency: Adjacency) -> PygAggregation:
        """Edges from sender to receiver, or the matrix of them."""
        counts = adjacency.row_pointer.diff().long()
        receiver = torch.arange(adjacency.num_nodes, device=counts.device)
        edges = torch.stack(
            [adjacency.column.long(), receiver.repeat_interleave(counts)]
        )
        if self.shape.input == "edges":
            return PygAggregation((edges,))
        size = (adjacency.num_nodes, adjacency.num_nodes)
        return PygAggregation(to_torch_csr_tensor(edges.flip(0), size=size))

    def forward(
        self,
        x: Tensor,  # (num_nodes, num_features) float32 or half
        aggregation: PygAggregation,
        seeds: Tensor | None = None,  # not used
    ) -> Tensor:
        """Logits, (num_nodes, num_classes) float32.

        Raises:
            ValueError: if the model gives anything else.
        """
        x, edges = as_float32(x), aggregation.edges
        edge_index = edges if isinstance(edges, Tensor) else edges[0]
        is_half = self.training and self.technique.name == "autocast"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=is_half):
            logits = self.model(x, edge_index)
        expected = (len(x), self.shape.num_classes)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits)
            raise ValueError(
                f"{self.shape.class_name} must give logits shaped {expected} from "
                f"(x, edge_index), got {got}"
            )
        return logits.to(torch.float32)

    def check_finite(self) -> None:
        """Nothing: the loss tells, and no code hides a NaN from it."""


def _class(name: str) -> Any:
    module, _, own = name.rpartition(".")
    return getattr(importlib.import_module(module), own)
