"""Layers of GCN, AGNN, GAT that run from packed features (SGQuant, arXiv:2007.05100).

One forward serves three ways of running, so that they cannot drift apart: in full
precision (no QuantizedPoints), from packed points, and straight through them to tune.

Points, and the component of FeatureBits that says their bits:

             combination              attention
    GCN      input of a layer         its product with the weights, which is gathered
    GAT      input of a layer         the same, and the attention values
    AGNN     input of a layer, which  the attention values
             propagation gathers

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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from torch_geometric.nn.inits import glorot
from torch_geometric.utils import softmax

from pipeline_src.gnn.feature_bits import ElementCount
from pipeline_src.gnn.message_plan import MessagePlan, Run
from pipeline_src.gnn.quantized_points import QuantizedPoints
from pipeline_src.graphs.sparse_features import SparseFeatures
from pipeline_src.quant.feature_store import FeatureStore
from pipeline_src.quant.first_order import first_order
from pipeline_src.quant.references import check_unchanged

_LEAKY_SLOPE = 0.2  # of GAT's scores

Input = FeatureStore | SparseFeatures  # what a layer with weights reads


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass: the edges, and how points are stored."""

    plan: MessagePlan
    points: QuantizedPoints | None

    def store(self, x: Tensor, layer: int, component: str) -> FeatureStore:
        """Features of nodes, packed if points are."""
        if self.points is None:
            return FeatureStore.full(x)
        return self.points.store(x, layer, component, self.plan.groups)

    def linear(self, x: Input, weight: Tensor, dropout: nn.Dropout) -> Tensor:
        """Rows, some of their values dropped, times weights, (num_nodes, width)."""
        if isinstance(x, SparseFeatures):
            return x.linear(weight, dropout.p, dropout.training)
        return self.plan.by_rows(
            x, lambda rows: functional.linear(dropout(rows), weight)
        )

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
        """Smallest and largest attention value per head; a sweep that keeps none."""
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
    messages = rows.view(rows.shape[0], heads, -1)
    if torch.is_grad_enabled():
        messages = messages * weight[:, :, None]
    else:  # rows were gathered for this sum alone
        messages.mul_(weight[:, :, None])
    messages = messages.view(rows.shape)
    # The order of the sum is that of the edges, on every device and in every pass.
    return torch.segment_reduce(messages, "sum", offsets=run.pointer, unsafe=True)


class GcnAggregate(Function):
    """GCN's weighted sum, which needs nothing of its input for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: MessagePlan) -> Tensor:
        """Sum over neighbours, from float rows."""
        ctx.aggregation, ctx.references = plan.gcn, plan.gcn.watched()
        return gcn_sum(FeatureStore.full(x), plan)

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The transposed sum."""
        check_unchanged(ctx.references)
        return ctx.aggregation.transpose(gradients[0].contiguous()), None


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

    def forward(self, store: Input, layer: int, on: Pass, dropout: float) -> Tensor:
        """Output of the layer, (num_nodes, num_outputs); dropout is of its input."""
        drop = nn.Dropout(dropout).train(self.training)
        product = on.linear(store, self.weight, drop)
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

    def forward(self, store: Input, layer: int, on: Pass, dropout: float) -> Tensor:
        """Output, (num_nodes, heads * channels); dropout of input and attention."""
        drop = nn.Dropout(dropout).train(self.training)
        product = on.linear(store, self.weight, drop)
        kept = on.store(product, layer, "attention")
        del product
        of_receiver = on.plan.by_rows(
            kept, lambda rows: self._score(rows, self.receiver)
        )

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
        self, store: Input, layer: int, on: Pass, dropout: float
    ) -> Tensor:
        """Output, (num_nodes, num_outputs); dropout is of its input."""
        drop = nn.Dropout(dropout).train(self.training)
        return on.linear(store, self.weight, drop).add_(self.bias)

    def stored(self) -> tuple[ElementCount, ElementCount]:
        """Values at its points, in the order of COMPONENTS."""
        return ElementCount(), ElementCount(per_node=self.in_features)


Layer = GcnConvolution | GatConvolution | Propagation | Dense
