"""Training in full precision, and fine-tuning with quantised points.

Fine-tuning starts from trained weights and runs the same loop with the same optimiser:
forward reads what packed storage would give, gradients pass straight through. Both keep
the weights of the best validation epoch; in fine-tuning the weights it started from
compete, and win ties, so validation accuracy never falls. The loop does not wait for
the device: the best weights are selected there.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from pipeline_src.gnn.feature_network import FeatureNetwork
from pipeline_src.gnn.graphs import Graph
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.gnn.quantized_points import QuantizedPoints
from pipeline_src.quant.feature_store import FeatureStore

FINE_TUNING_EPOCHS = 40  # of the replication that the reference describes


@dataclass(frozen=True)
class Fit:
    """The best validation epoch; the network holds its weights."""

    epoch: int  # 0: the weights it started from
    validation_accuracy: float
    test_accuracy: float


def train(network: FeatureNetwork, graph: Graph, plan: MessagePlan, epochs: int) -> Fit:
    """Train in full precision; what the network starts from does not compete."""
    return _fit(network, graph, plan, None, epochs, start_competes=False)


def fine_tune(
    network: FeatureNetwork,  # trained
    graph: Graph,
    plan: MessagePlan,
    points: QuantizedPoints,
    epochs: int = FINE_TUNING_EPOCHS,
) -> Fit:
    """Train on with quantised points; accuracies are those of packed inference.

    With 0 epochs nothing is tuned: the accuracy of direct quantisation.
    """
    return _fit(network, graph, plan, points, epochs, start_competes=True)


@torch.no_grad()
def accuracies(
    network: FeatureNetwork,
    x: Tensor | FeatureStore,
    graph: Graph,
    plan: MessagePlan,
    points: QuantizedPoints | None,
) -> Tensor:
    """Share of validation and of test nodes classified right, (2,) on the device."""
    network.eval()
    right = (network(x, plan, points).argmax(dim=1) == graph.labels).to(torch.float32)
    parts = (graph.validation_index, graph.test_index)
    return torch.stack([right[index].mean() for index in parts])


def _fit(
    network: FeatureNetwork,
    graph: Graph,
    plan: MessagePlan,
    points: QuantizedPoints | None,
    epochs: int,
    start_competes: bool,
) -> Fit:
    x: Tensor | FeatureStore = graph.features
    straight = None
    if points is not None:
        # Decoded once: the same numbers as packed ones that each pass decodes anew.
        x = FeatureStore.full(network.pack_input(graph.features, plan, points).decode())
        straight = replace(points, straight_through=True, record=None)
    optimizer = torch.optim.Adam(
        network.parameter_groups(), lr=network.hyperparameters.learning_rate
    )
    parameters = list(network.parameters())
    best = [parameter.detach().clone() for parameter in parameters]
    best_epoch = torch.zeros((), dtype=torch.int64, device=graph.labels.device)
    best_accuracies = torch.full((2,), -1.0, device=graph.labels.device)
    if start_competes:
        best_accuracies = accuracies(network, x, graph, plan, points)
    labels = graph.labels[graph.train_index]
    for epoch in range(1, epochs + 1):
        network.train()
        optimizer.zero_grad(set_to_none=True)
        logits = network(x, plan, straight)[graph.train_index]
        functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        reached = accuracies(network, x, graph, plan, points)
        better = reached[0] > best_accuracies[0]
        best_accuracies = torch.where(better, reached, best_accuracies)
        best_epoch = torch.where(better, epoch, best_epoch)
        for kept, parameter in zip(best, parameters, strict=True):
            torch.where(better, parameter.detach(), kept, out=kept)
    with torch.no_grad():
        for kept, parameter in zip(best, parameters, strict=True):
            parameter.copy_(kept)
    validation, test = best_accuracies.tolist()
    return Fit(int(best_epoch), validation, test)
