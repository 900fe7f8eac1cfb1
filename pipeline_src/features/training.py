"""Training in full precision, and fine-tuning with quantised points or without.

Fine-tuning starts from trained weights and runs the same loop with the same optimiser:
forward reads what packed storage would give, gradients pass straight through. Both keep
the weights of the best validation epoch; in fine-tuning the weights it started from
compete, and win ties, so validation accuracy never falls. The loop does not wait for
the device: the best weights are selected there.

More epochs, and one more choice of the best of them, help any network, packed or not.
So what tuning gives to packed networks is told from what packing costs by tuning full
precision as well: the same function without points, hence the same epochs, optimiser,
learning rate and rule of selection.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from pipeline_src.gnn.attention import Input
from pipeline_src.gnn.feature_network import FeatureNetwork
from pipeline_src.gnn.message_plan import MessagePlan
from pipeline_src.gnn.quantized_points import QuantizedPoints
from pipeline_src.graphs.graph import Graph
from pipeline_src.graphs.sparse_features import MOST_ENTRIES, SparseFeatures
from pipeline_src.graphs.splits import refuse_empty_splits
from pipeline_src.quant.feature_store import FeatureStore

FINE_TUNING_EPOCHS = 40  # of the replication that the reference describes
# Floats gathered at a time. Backward makes a gradient of all rows for each run, so runs
# are longer than those of inference, whose peak is what packing is for.
TRAINING_RUN_VALUES = 2**20


@dataclass(frozen=True)
class Fit:
    """The best validation epoch; the network holds its weights."""

    epoch: int  # 0: the weights it started from
    validation_accuracy: float
    test_accuracy: float


def train(network: FeatureNetwork, graph: Graph, plan: MessagePlan, epochs: int) -> Fit:
    """Train in full precision; what the network starts from does not compete.

    Raises:
        FloatingPointError: if the loss or a weight stops being finite.
    """
    graph.refuse_multilabel("training stored features in few bits")
    return _fit(network, graph, plan, None, epochs, start_competes=False)


def fine_tune(
    network: FeatureNetwork,  # trained
    graph: Graph,
    plan: MessagePlan,
    points: QuantizedPoints | None,  # None: full precision, tuned by the same rule
    epochs: int = FINE_TUNING_EPOCHS,
) -> Fit:
    """Train on with quantised points; accuracies are those of packed inference.

    With 0 epochs nothing is tuned: the accuracy of direct quantisation, or of the
    network as it is.
    """
    return _fit(network, graph, plan, points, epochs, start_competes=True)


@torch.no_grad()
def accuracies(
    network: FeatureNetwork,
    x: Tensor | Input,
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
    """Passes of the loop take long runs and read the input as it is fastest.

    Sums over the few entries of a sparse input run in another order than packed
    inference's; so the accuracies that are returned are measured at the end, from what
    is kept.
    """
    refuse_empty_splits(graph.splits)
    kept: FeatureStore = FeatureStore.full(graph.features)
    straight = None
    if points is not None:
        kept = network.pack_input(graph.features, plan, points)
        straight = replace(points, straight_through=True, record=None)
    x, long_runs = _read_often(kept), plan.in_runs_of(TRAINING_RUN_VALUES)
    optimizer = torch.optim.Adam(
        network.parameter_groups(), lr=network.hyperparameters.learning_rate
    )
    parameters = list(network.parameters())
    best = [parameter.detach().clone() for parameter in parameters]
    best_epoch = torch.zeros((), dtype=torch.int64, device=graph.labels.device)
    best_accuracy = torch.full((), -1.0, device=graph.labels.device)
    if start_competes:
        best_accuracy = accuracies(network, x, graph, long_runs, points)[0]
    labels = graph.labels[graph.train_index]
    losses = torch.empty(epochs, device=labels.device)
    for epoch in range(1, epochs + 1):
        network.train()
        optimizer.zero_grad(set_to_none=True)
        logits = network(x, long_runs, straight)[graph.train_index]
        loss = functional.cross_entropy(logits, labels)
        losses[epoch - 1] = loss.detach()
        loss.backward()
        optimizer.step()
        reached = accuracies(network, x, graph, long_runs, points)[0]
        better = reached > best_accuracy
        best_accuracy = torch.where(better, reached, best_accuracy)
        best_epoch = torch.where(better, epoch, best_epoch)
        for best_one, parameter in zip(best, parameters, strict=True):
            torch.where(better, parameter.detach(), best_one, out=best_one)
    if not start_competes:
        _check_finite(losses, parameters)
    with torch.no_grad():
        for best_one, parameter in zip(best, parameters, strict=True):
            parameter.copy_(best_one)
    validation, test = accuracies(network, kept, graph, plan, points).tolist()
    return Fit(int(best_epoch), validation, test)


def _read_often(kept: FeatureStore) -> Input:
    """The same numbers, decoded once; only those that are not zero, if they are few."""
    x = kept.decode()
    if int(torch.count_nonzero(x)) < MOST_ENTRIES * x.numel():
        return SparseFeatures.of(x)
    return FeatureStore.full(x)


def _check_finite(losses: Tensor, parameters: list[Parameter]) -> None:
    """Refuse a network that diverged: its best epoch would be an accident."""
    if bad := (~losses.isfinite()).nonzero().flatten().tolist():
        what = f"the loss is {float(losses[bad[0]])} after epoch {bad[0] + 1}"
    elif not all(bool(parameter.isfinite().all()) for parameter in parameters):
        what = f"NaN or infinity in the weights after epoch {len(losses)}"
    else:
        return
    raise FloatingPointError(
        f"{what}. The published learning rate does not suit this graph: leave the"
        " model out for it, or scale its features"
    )
