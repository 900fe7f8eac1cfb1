"""GCN, AGNN and GAT that run from packed features (SGQuant, arXiv:2007.05100).

One forward serves three ways of running, so that they cannot drift apart:

    points=None                full precision, PyTorch's own autograd
    QuantizedPoints            every point is packed; consumers gather packed rows
    ... straight_through=True  every point is packed and decoded at once: the same
                               numbers bit for bit, and gradients pass as if it were
                               the identity (also where a value was clipped, as in
                               the released code)

Points, and the component of FeatureBits that says their bits:

             combination                  attention
    GCN      input of a layer             its product with the weights, gathered per edge
    GAT      input of a layer             the same, and the attention values
    AGNN     input of a layer; that of    the attention values
             propagation is gathered

These are the points of the released code and of its notes (four feature points of
AGNN; input, product, gathered rows and attention of GAT), with two differences: a
product is stored once, packed, where theirs is copied per edge; and attention is
quantised after the softmax, which is what the sum reads, not also before it.

Peak of inference. The input features dominate, and are never whole in floats: a run of
rows is dequantised into the matrix product, a run of senders' rows into the sum
(message_plan.py). Attention values live for one run, packed in between. Floats that are
whole for a moment: each product and each layer's output, (num_nodes, width), because
a range over all rows needs all rows; they are freed once packed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from torch_geometric.nn.inits import glorot
from torch_geometric.utils import softmax

from pipeline_src.gnn.feature_bits import (
    Elements,
    ElementCount,
    FeatureBits,
)
from pipeline_src.gnn.message_plan import RUN_VALUES, MessagePlan, Run, by_rows
from pipeline_src.quant.feature_store import FeatureStore, RowGroups, RowPacking
from pipeline_src.quant.segment_store import pack_segments

MODELS = ("gcn", "agnn", "gat")
ATTENTION_RANGES = ("receiver", "tensor")
_LEAKY_SLOPE = 0.2  # of GAT's scores

# (name of the point, bytes of one packed tensor of it)
Record = Callable[[str, int], None]


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


class StraightThrough(Function):
    """Any rounding in forward, the identity in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        """What rounding makes of x."""
        return rounding(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient, unchanged."""
        return gradients[0], None


@dataclass(frozen=True)
class QuantizedPoints:
    """How each point of a network is stored.

    Raises:
        ValueError: if attention_range is not one of ATTENTION_RANGES.
    """

    bits: FeatureBits
    packing: RowPacking = field(default_factory=RowPacking)
    attention_range: str = "receiver"  # shared by the edges of a receiver, or by all
    straight_through: bool = False
    record: Record | None = None  # told the bytes of all that is packed

    def __post_init__(self) -> None:
        if self.attention_range not in ATTENTION_RANGES:
            raise ValueError(
                f"attention_range must be one of {ATTENTION_RANGES}, "
                f"got {self.attention_range!r}"
            )

    def store(
        self, x: Tensor, layer: int, component: str, groups: RowGroups | None
    ) -> FeatureStore:
        """Features of nodes, (num_nodes, width), as their consumer will read them."""
        bits = self.bits.bits(layer, component)

        def pack(x: Tensor) -> FeatureStore:
            packed = FeatureStore.pack(x, bits, self.packing, groups)
            self._report(layer, component, packed.nbytes)
            return packed

        if self.straight_through:
            decoded = StraightThrough.apply(x, lambda x: pack(x).decode())
            return FeatureStore.full(decoded)
        return pack(x)

    def attention(
        self,
        values: Tensor,  # (num_edges, heads) float32
        run: Run,
        layer: int,
        shared_range: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Attention values of a run as the sum over messages will read them."""
        bits = self.bits.bits(layer, "attention")[run.bucket]
        if bits == 32:
            self._report(layer, "attention values", values.nbytes)
            return values

        def round_trip(values: Tensor) -> Tensor:
            packed = pack_segments(
                values,
                run.pointer,
                run.owner,
                bits,
                shared_range,
                self.packing.compile,
            )
            self._report(layer, "attention values", packed.nbytes)
            return packed.decode(run.owner)

        if self.straight_through:
            return StraightThrough.apply(values, round_trip)
        return round_trip(values)

    def _report(self, layer: int, point: str, nbytes: int) -> None:
        if self.record is not None:
            self.record(f"layer{layer + 1}.{point}", nbytes)


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass: the edges, and how points are stored."""

    plan: MessagePlan
    points: QuantizedPoints | None
    run_values: int = RUN_VALUES

    def store(self, x: Tensor, layer: int, component: str) -> FeatureStore:
        """Features of nodes, packed if points are."""
        if self.points is None:
            return FeatureStore.full(x)
        return self.points.store(x, layer, component, self.plan.groups)

    def combine(
        self, store: FeatureStore, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """A function of each row of the store, run by run."""
        return by_rows(store, function, self.run_values)

    def attend(
        self,
        layer: int,
        scores: Callable[[Run, Tensor], Tensor],  # run, senders' rows -> (edges, heads)
        store: FeatureStore,
        dropout: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Sum senders' rows weighted by the softmax of scores, (num_nodes, width)."""
        shared_range = self._range_of_all(scores, store)

        def message(run: Run) -> Tensor:
            rows = store.gather(run.senders)
            values = softmax(scores(run, rows), ptr=run.pointer)
            if self.points is not None:
                values = self.points.attention(values, run, layer, shared_range)
            return weighted_sum(rows, dropout(values), run)

        return self.plan.receive(message)

    @torch.no_grad()
    def _range_of_all(
        self, scores: Callable[[Run, Tensor], Tensor], store: FeatureStore
    ) -> tuple[Tensor, Tensor] | None:
        """Smallest and largest attention value per head; a sweep that keeps no others."""
        if self.points is None or self.points.attention_range == "receiver":
            return None
        smallest, largest = [], []
        for run in self.plan.runs():
            values = softmax(scores(run, store.gather(run.senders)), ptr=run.pointer)
            low, high = torch.aminmax(values, dim=0)
            smallest.append(low)
            largest.append(high)
        return (
            torch.stack(smallest).amin(0, keepdim=True),
            torch.stack(largest).amax(0, keepdim=True),
        )


def weighted_sum(
    rows: Tensor,  # (num_edges, heads * channels), of senders
    weight: Tensor,  # (num_edges, heads)
    run: Run,
) -> Tensor:
    """What each receiver of a run gets, (num_receivers, heads * channels)."""
    heads = weight.shape[1]
    messages = rows.view(rows.shape[0], heads, -1) * weight[:, :, None]
    messages = messages.view(rows.shape)
    # The order of the sum is that of the edges, on every device and in every pass.
    return torch.segment_reduce(messages, "sum", offsets=run.pointer, unsafe=True)


class GcnAggregate(Function):
    """GCN's weighted sum, which needs nothing of its input for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: MessagePlan) -> Tensor:
        """Sum over neighbours, from float rows."""
        ctx.plan = plan
        return gcn_sum(FeatureStore.full(x), plan)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The transposed sum."""
        return ctx.plan.gcn.transpose(gradients[0].contiguous()), None


def gcn_sum(store: FeatureStore, plan: MessagePlan) -> Tensor:
    """D^-1/2 (A + I) D^-1/2 times the rows of the store, (num_nodes, width)."""
    root = plan.inverse_root_degree

    def message(run: Run) -> Tensor:
        received = root[run.receivers].index_select(0, run.owner)
        weight = root.index_select(0, run.senders) * received
        return weighted_sum(store.gather(run.senders), weight[:, None], run)

    return plan.receive(message)


class GcnConvolution(nn.Module):
    """Kipf & Welling 2017; parameters drawn as torch_geometric does."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_outputs, num_inputs))
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        glorot(self.weight)

    def forward(
        self, store: FeatureStore, layer: int, on: Pass, dropout: float
    ) -> Tensor:
        """Output of the layer, (num_nodes, num_outputs); dropout is of its input."""
        drop = nn.Dropout(dropout).train(self.training)
        product = on.combine(
            store, lambda rows: functional.linear(drop(rows), self.weight)
        )
        kept = on.store(product, layer, "attention")
        if product.requires_grad:
            return GcnAggregate.apply(kept.decode(), on.plan) + self.bias
        return gcn_sum(kept, on.plan).add_(self.bias)

    def stored(self) -> tuple[ElementCount, ElementCount]:
        """Values at its points, in the order of COMPONENTS."""
        num_outputs, num_inputs = self.weight.shape
        return ElementCount(per_node=num_outputs), ElementCount(per_node=num_inputs)


class GatConvolution(nn.Module):
    """Velickovic et al. 2018, heads side by side; as torch_geometric's GATConv."""

    def __init__(self, num_inputs: int, heads: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads * channels, num_inputs))
        self.sender = nn.Parameter(torch.empty(1, heads, channels))
        self.receiver = nn.Parameter(torch.empty(1, heads, channels))
        self.bias = nn.Parameter(torch.zeros(heads * channels))
        for parameter in (self.weight, self.sender, self.receiver):
            glorot(parameter)

    def forward(
        self, store: FeatureStore, layer: int, on: Pass, dropout: float
    ) -> Tensor:
        """Output, (num_nodes, heads * channels); dropout of input and attention."""
        drop = nn.Dropout(dropout).train(self.training)
        product = on.combine(
            store, lambda rows: functional.linear(drop(rows), self.weight)
        )
        kept = on.store(product, layer, "attention")
        del product
        of_receiver = on.combine(kept, lambda rows: self._score(rows, self.receiver))

        def scores(run: Run, rows: Tensor) -> Tensor:
            receiver = of_receiver.index_select(0, run.receivers)
            score = self._score(rows, self.sender) + receiver[run.owner]
            return functional.leaky_relu(score, _LEAKY_SLOPE)

        return on.attend(layer, scores, kept, drop) + self.bias

    def stored(self) -> tuple[ElementCount, ElementCount]:
        """Values at its points, in the order of COMPONENTS."""
        num_outputs, num_inputs = self.weight.shape
        heads = self.sender.shape[1]
        attention = ElementCount(per_node=num_outputs, per_edge=heads)
        return attention, ElementCount(per_node=num_inputs)

    def _score(self, rows: Tensor, vector: Tensor) -> Tensor:
        """(num_rows, heads): the product of each head's channels with its vector."""
        return (rows.view(-1, *vector.shape[1:]) * vector).sum(dim=-1)


class Propagation(nn.Module):
    """AGNN's layer (Thekumparampil et al. 2018): attention by cosine, no weights."""

    def __init__(self, width: int, learn_beta: bool) -> None:
        super().__init__()
        self.width = width
        self.beta = nn.Parameter(torch.ones(1), requires_grad=learn_beta)

    def forward(
        self, store: FeatureStore, layer: int, on: Pass, dropout: float
    ) -> Tensor:
        """Output, (num_nodes, width)."""

        def scores(run: Run, rows: Tensor) -> Tensor:
            receiver = functional.normalize(store.gather(run.receivers))
            cosine = functional.normalize(rows) * receiver.index_select(0, run.owner)
            return self.beta * cosine.sum(dim=-1, keepdim=True)

        return on.attend(layer, scores, store, nn.Dropout(dropout).train(self.training))

    def stored(self) -> tuple[ElementCount, ElementCount]:
        """Values at its points, in the order of COMPONENTS."""
        return ElementCount(per_edge=1), ElementCount(per_node=self.width)


class Dense(nn.Linear):
    """A layer without neighbours."""

    def forward(  # type: ignore[override]
        self, store: FeatureStore, layer: int, on: Pass, dropout: float
    ) -> Tensor:
        """Output, (num_nodes, num_outputs); dropout is of its input."""
        drop = nn.Dropout(dropout).train(self.training)
        return on.combine(store, lambda rows: super(Dense, self).forward(drop(rows)))

    def stored(self) -> tuple[ElementCount, ElementCount]:
        """Values at its points, in the order of COMPONENTS."""
        return ElementCount(), ElementCount(per_node=self.in_features)


Layer = GcnConvolution | GatConvolution | Propagation | Dense


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
            (a if a.per_node else c).per_node for a, c in self.elements() if a != _NONE
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
        x: Tensor | FeatureStore,  # (num_nodes, num_features); a store is read as it is
        plan: MessagePlan,
        points: QuantizedPoints | None = None,  # None: full precision
    ) -> Tensor:
        """Logits, (num_nodes, num_classes).

        Raises:
            ValueError: if the table of bits is for another number of layers.
        """
        if points is not None and points.bits.num_layers != self.num_layers:
            raise ValueError(
                f"bits must be a table of {self.num_layers} layers, "
                f"got {points.bits.num_layers}"
            )
        on = Pass(plan, points)
        parts = zip(self.layers, self.nonlinearities, self.dropouts, strict=True)
        for i, (layer, nonlinearity, dropout) in enumerate(parts):
            store = x if isinstance(x, FeatureStore) else on.store(x, i, "combination")
            x = layer(store, i, on, dropout)
            if nonlinearity is not None:
                x = nonlinearity(x)
        return cast(Tensor, x)

    def pack_input(
        self, x: Tensor, plan: MessagePlan, points: QuantizedPoints
    ) -> FeatureStore:
        """Input features as the first layer reads them: packed once, for all passes.

        They take no gradient, so fine-tuning reads the packed ones as well.
        """
        packed = replace(points, straight_through=False)
        return packed.store(x, 0, "combination", plan.groups)


_NONE = ElementCount()
