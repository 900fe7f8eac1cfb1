"""GCN, AGNN and GAT as in SGQuant's released scripts, in full precision or packed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_src.gnn.attention import (
    Dense,
    GatConvolution,
    GcnConvolution,
    Input,
    Layer,
    Pass,
    Propagation,
)
from pipeline_src.gnn.feature_bits import ElementCount, Elements
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.gnn.quantized_points import QuantizedPoints
from pipeline_src.quant.dtypes import SUPPORTED, check_dtype
from pipeline_src.quant.feature_store import FeatureStore

MODELS = ("gcn", "agnn", "gat")


@dataclass(frozen=True)
class Hyperparameters:
    """A model and its training as published."""

    hidden: int  # width, with heads the width of each
    heads: int
    dropout: float
    learning_rate: float
    weight_decay: float
    decay_first_layer_only: bool
    epochs: int


# From the released scripts (commits as in the reference of the project): ictai/gcn.py,
# SGQuant/agnn.py, ictai/gat.py with the 8 x 8 of the notes in ictai/Qgat.py.
# ASSUME: heads of 8 channels, not the 256 of gat.py, as in all figures of the notes.
PUBLISHED = {
    "gcn": Hyperparameters(16, 1, 0.5, 0.01, 5e-4, True, 200),
    "agnn": Hyperparameters(16, 1, 0.5, 0.005, 5e-4, False, 400),
    "gat": Hyperparameters(8, 8, 0.6, 0.005, 5e-4, False, 200),
}


class FeatureNetwork(nn.Module):
    """GCN, AGNN or GAT as in the released scripts."""

    def __init__(
        self,
        model: str,  # one of MODELS
        num_features: int,
        num_classes: int,
        hyperparameters: Hyperparameters | None = None,  # None: PUBLISHED
    ) -> None:
        """Draw parameters from torch's global generator.

        Raises:
            ValueError: if model is unknown.
        """
        super().__init__()
        if model not in MODELS:
            raise ValueError(f"model must be one of {MODELS}, got {model!r}")
        published = hyperparameters or PUBLISHED[model]
        hidden, dropout = published.hidden, published.dropout
        self.hyperparameters = published
        self.num_classes = num_classes
        layers: list[Layer]
        self.nonlinearities: tuple[Callable[[Tensor], Tensor] | None, ...]
        self.dropouts: tuple[float, ...]
        if model == "gcn":
            layers = [
                GcnConvolution(num_features, hidden),
                GcnConvolution(hidden, num_classes),
            ]
            self.nonlinearities = (torch.relu, None)
            self.dropouts = (0.0, dropout)
        elif model == "gat":
            heads = published.heads
            layers = [
                GatConvolution(num_features, heads, hidden),
                GatConvolution(heads * hidden, 1, num_classes),
            ]
            self.nonlinearities = (functional.elu, None)
            self.dropouts = (dropout, dropout)
        else:
            layers = [
                Dense(num_features, hidden),
                Propagation(hidden, learn_beta=False),
                Propagation(hidden, learn_beta=True),
                Dense(hidden, num_classes),
            ]
            self.nonlinearities = (torch.relu, None, None, None)
            self.dropouts = (dropout, 0.0, 0.0, dropout)
        self.layers = nn.ModuleList(layers)

    @property
    def num_layers(self) -> int:
        """Layers, as FeatureBits counts them."""
        return len(self.layers)

    @property
    def gathered_width(self) -> int:
        """The widest row that is gathered per edge: what a MessagePlan needs."""
        return max(
            attention.per_node or combination.per_node
            for attention, combination in self.elements()
            if attention != ElementCount()
        )

    def elements(self) -> Elements:
        """Values that this network stores: nominal memory without copies per edge."""
        return tuple(cast(Layer, layer).stored() for layer in self.layers)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What an optimiser takes: parameters with their weight decay."""
        decay = self.hyperparameters.weight_decay
        later = 0.0 if self.hyperparameters.decay_first_layer_only else decay
        return [
            {
                "params": [p for p in layer.parameters() if p.requires_grad],
                "weight_decay": later if i else decay,
            }
            for i, layer in enumerate(self.layers)
        ]

    def forward(
        self,
        x: Tensor | Input,  # (num_nodes, num_features); what is stored is read as it is
        plan: MessagePlan,
        points: QuantizedPoints | None = None,  # None: full precision
    ) -> Tensor:
        """Logits, (num_nodes, num_classes).

        Raises:
            ValueError: if the table of bits is for another number of layers.
            TypeError: if features are of a type that does not fit the parameters.
        """
        if points is not None and points.bits.num_layers != self.num_layers:
            raise ValueError(
                f"bits must be a table of {self.num_layers} layers, "
                f"got {points.bits.num_layers}"
            )
        own = next(self.parameters()).dtype
        if isinstance(x, Tensor):
            check_dtype(x, "x", SUPPORTED if own == torch.float32 else (own,))
        on = Pass(plan, points)
        parts = zip(self.layers, self.nonlinearities, self.dropouts, strict=True)
        for i, (layer, nonlinearity, dropout) in enumerate(parts):
            store = on.store(x, i, "combination") if isinstance(x, Tensor) else x
            output: Tensor = layer(store, i, on, dropout)
            x = output if nonlinearity is None else nonlinearity(output)
        return cast(Tensor, x)

    def pack_input(
        self, x: Tensor, plan: MessagePlan, points: QuantizedPoints
    ) -> FeatureStore:
        """Input features as the first layer reads them: packed once, for all passes.

        They take no gradient, so fine-tuning reads the packed ones as well.
        """
        packed = replace(points, straight_through=False)
        return packed.store(x, 0, "combination", plan.groups)
