"""The same networks as a user of PyTorch Geometric trains them, to compare with.

Layers, blocks and hyper-parameters are those of gnn/models.py, and so are the first
parameters and, under one seed of torch, the Dropout masks; convolutions are PyTorch
Geometric's own. A Technique says how memory is saved, with what PyTorch has for it.
"""

import contextlib
import functools
import itertools
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch_geometric.nn import GCNConv, SAGEConv

from pipeline_src.gnn.models import GraphNetwork
from pipeline_src.gnn.pyg.aggregation import Edges, PygAggregation, aggregation_of
from pipeline_src.gnn.pyg.hooks import dequantize_saved, keep_instead, quantize_saved
from pipeline_src.gnn.pyg.operator import OperatorGcn, OperatorSage
from pipeline_src.gnn.pyg.passes import checkpointed_block, compiled, forward_pass
from pipeline_src.gnn.pyg.technique import Technique
from pipeline_src.gnn.shape import NetworkShape
from pipeline_src.graphs.graph import Adjacency
from pipeline_src.quant.dtypes import as_float32


class PygNetwork(nn.Module):
    """Convolutions of PyTorch Geometric, BatchNorm, ReLU and Dropout between them."""

    num_seeds = 0  # a step needs none

    def __init__(self, shape: NetworkShape, technique: Technique) -> None:
        """Build with the parameters that GraphNetwork draws in its place."""
        super().__init__()
        first = GraphNetwork(shape)
        self.layer = shape.layer
        self.technique = technique
        self.hidden = shape.hidden
        self.dropout = shape.dropout
        self.activation_names: list[str] = []
        sage, gcn = SAGEConv, GCNConv
        if technique.has_operator:
            sage, gcn = OperatorSage, OperatorGcn
        with torch.random.fork_rng():  # their own first parameters are not used
            self.convolutions = nn.ModuleList(
                # The aggregation is normalised once, not by each layer.
                sage(*pair) if shape.layer == "sage" else gcn(*pair, normalize=False)
                for pair in itertools.pairwise(shape.widths)
            )
        self.norms = first.norms
        self.copy_parameters(first)
        # Drawn beside torch's global generator, which Dropout must find as it was.
        self._rounding = torch.Generator().manual_seed(torch.initial_seed())

    @torch.no_grad()
    def copy_parameters(self, network: GraphNetwork) -> None:
        """Take the parameters and statistics of a network of the same shape."""
        self.norms.load_state_dict(network.norms.state_dict())
        names = {  # PyTorch Geometric's: ours
            "lin_l.weight": "neighbor.weight",
            "lin_l.bias": "neighbor.bias",
            "lin_r.weight": "root.weight",
        }
        if self.layer == "gcn":
            names = {"lin.weight": "weight", "bias": "bias"}
        for own, other in zip(self.convolutions, network.convolutions, strict=True):
            for theirs, name in names.items():
                own.get_parameter(theirs).copy_(other.get_parameter(name))

    def aggregation(self, adjacency: Adjacency) -> PygAggregation:
        """The aggregation that this network uses on a graph, normalised once."""
        return aggregation_of(self.layer, adjacency, self.technique)

    def forward(
        self,
        x: Tensor,  # (num_nodes, num_features) float32 or half
        aggregation: PygAggregation,
        seeds: Tensor | None = None,  # not used: GraphNetwork takes them here
    ) -> Tensor:
        """Logits, (num_nodes, num_classes) float32.

        Raises:
            TypeError: if x is of another type.
        """
        x = as_float32(x)
        if not self.training:
            return forward_pass(self, x, aggregation.edges)
        technique = self.technique
        if technique.is_compiled:
            if technique.name == "compiled":
                return compiled(1.0)(self, x, aggregation.edges)
            masks = self._draw_masks(x)
            return compiled(technique.memory_budget)(self, x, aggregation.edges, masks)
        if technique.name == "autocast":
            half = cast(Edges, aggregation.half)
            with torch.autocast(x.device.type, torch.bfloat16):
                logits = forward_pass(self, x.to(torch.bfloat16), half)
            # as autocast does where the loss begins
            return logits.to(torch.float32)
        if technique.name == "checkpointing":
            return forward_pass(self, x, aggregation.edges, block=checkpointed_block)
        with self._hooks(x, aggregation):
            return forward_pass(self, x, aggregation.edges)

    def check_finite(self) -> None:
        """Nothing: the loss tells, and no code hides a NaN from it."""

    def _draw_masks(self, x: Tensor) -> list[Tensor]:
        """Dropout's mask of each hidden layer, (num_nodes, hidden) bool."""
        if self.dropout == 0:
            return []
        ones = x.new_ones(len(x), self.hidden)
        hidden_layers = self.convolutions[:-1]
        return [
            torch.native_dropout(ones, self.dropout, True)[1] for _ in hidden_layers
        ]

    def _hooks(
        self, x: Tensor, aggregation: PygAggregation
    ) -> AbstractContextManager[Any]:
        """What is done to each tensor that autograd saves."""
        resident = {
            tensor.data_ptr(): name
            for name, tensor in (
                ("x", x),
                *self.named_parameters(),
                *self.named_buffers(),
                *(("the aggregation's matrix", part) for part in aggregation.tensors()),
            )
        }
        if self.technique.name == "offload":
            hooks = save_on_cpu(pin_memory=x.device.type == "cuda")
            return keep_instead(hooks.pack_hook, hooks.unpack_hook, resident)
        if self.technique.name == "quantized_hooks":
            quantize = functools.partial(
                quantize_saved, bits=self.technique.bits, generator=self._rounding
            )
            return keep_instead(quantize, dequantize_saved, resident)
        return contextlib.nullcontext()
