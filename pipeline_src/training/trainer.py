"""A model, its optimiser and its data on one device, ready to take steps.

The training step follows EXACT and its block-wise successor: Adam, clipped gradients,
evaluation in full precision on the full graph. An epoch is one step on the full graph,
or one for each batch that a loader cuts out of it. A step never waits for the device.

Everything random comes from the seed of the run: the parameters and Dropout from
torch's generators, rounding and projections from a table of seeds drawn at the start.
Methods that are run with the same seed start from the same parameters and, but for
policy lean and what torch.compile draws, drop the same activations, so they can be
compared in pairs.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from pipeline_src.gnn.models import Keep
from pipeline_src.graphs.graph import Graph
from pipeline_src.graphs.splits import refuse_empty_splits
from pipeline_src.quant.fusion import resolve_compile
from pipeline_src.training.adam import Adam
from pipeline_src.training.batches import Batch, Batches
from pipeline_src.training.networks import build_network, keeper_of, shape_of
from pipeline_src.training.spec import BoundariesOf, RunSpec

LOWER = "Lower learning_rate or set gradient_clip."
LOG_LOSS_OFFSET = 1 - math.log(2)  # of the log cross entropy, EXACT's training script


class Trainer:
    """A model, its optimiser and its data on one device, ready to take steps."""

    def __init__(
        self,
        spec: RunSpec,
        graph: Graph,  # on the device to train on
        boundaries_of: BoundariesOf | None,
        seed: int,
        watch: Callable[[Keep], Keep] | None = None,  # stands between, policy exact
    ) -> None:
        """Seed torch's global generators and build what the specification names."""
        refuse_empty_splits({"train_index": graph.train_index})
        torch.manual_seed(seed)
        self.spec = spec
        self.seed = seed
        self.graph = graph
        self.device = graph.features.device
        compile = resolve_compile(spec.compile, self.device)
        shape = shape_of(spec.model, graph)
        keeper = keeper_of(spec.method, shape, boundaries_of, compile, self.device)
        if watch is not None:
            keeper = watch(cast(Keep, keeper))
        self.model = build_network(shape, keeper, compile).to(self.device)
        self.aggregation = self.model.aggregation(graph.adjacency)
        self.optimizer = Adam(
            self.model.parameters(),
            spec.training.learning_rate,
            spec.training.weight_decay,
        )
        self.whole = Batch(
            graph.features, graph.labels, graph.train_index, self.aggregation
        )
        self.batches: Batches | None = None
        if spec.training.batches is not None:
            aggregation_of = self.model.aggregation
            self.batches = Batches(spec.training.batches, graph, aggregation_of, seed)
        self.steps_per_epoch = 1 if self.batches is None else len(self.batches)
        # Drawn on the CPU, so that every device rounds alike.
        generator = torch.Generator().manual_seed(seed)
        num_steps = spec.training.epochs * self.steps_per_epoch
        size = (num_steps, self.model.num_seeds)
        seeds = torch.randint(-(2**31), 2**31, size, generator=generator)
        self.seeds = seeds.to(torch.int32).to(self.device)
        self._finite_logits = torch.ones((), dtype=torch.bool, device=self.device)

    def first_batch(self) -> Batch:
        """What the first step of a training is taken on."""
        return self.whole if self.batches is None else next(self.batches.of_epoch(0))[1]

    def logits(self, step: int, batch: Batch | None = None) -> Tensor:
        """Logits of the training nodes in training mode, (num_train, num_classes)."""
        batch = self.whole if batch is None else batch
        self.model.train()
        output = self.model(batch.features, batch.aggregation, self.seeds[step])
        return output[batch.train_index]

    def step(self, epoch: int) -> Tensor:
        """An epoch of training steps; returns the mean loss, still on the device.

        A batch in which no node is trained on takes no step and has no loss.

        Raises:
            ValueError: if no batch of the epoch has a node to train on.
        """
        if self.batches is None:
            return self.step_on(self.whole, epoch)
        first = epoch * self.steps_per_epoch
        losses = [
            self.step_on(batch, first + place)
            for place, batch in self.batches.of_epoch(epoch)
        ]
        return torch.stack(losses).mean()

    def step_on(self, batch: Batch, step: int) -> Tensor:
        """One training step, counted from 0; returns the loss, still on the device."""
        self.optimizer.zero_grad()
        labels = batch.labels[batch.train_index]
        loss = training_loss(self.logits(step, batch), labels, self.spec.training.loss)
        loss.backward()
        if self.spec.training.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self.spec.training.gradient_clip
            )
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """Train, validation and test accuracy, (3,), still on the device.

        Of several labels per node it is the micro-F1, where a positive logit gives one.
        """
        self.model.eval()
        output = self.model(self.graph.features, self.aggregation)
        self._finite_logits.logical_and_(output.isfinite().all())
        if self.graph.is_multilabel:
            given, labels = output > 0, self.graph.labels
            indices = self.graph.splits.values()
            return torch.stack([micro_f1(given[i], labels[i]) for i in indices])
        is_right = (output.argmax(dim=1) == self.graph.labels).to(torch.float32)
        return torch.stack(
            [is_right[index].mean() for index in self.graph.splits.values()]
        )

    def check_finite(self, losses: Tensor) -> None:
        """Raise if anything so far was NaN or infinite; waits for the device.

        The loss alone does not tell: BatchNorm brings weights of any size back to unit
        variance, and the last step is followed by no loss.

        Args:
            losses: of each epoch so far, (num_epochs,).

        Raises:
            FloatingPointError: naming what was not finite, and the remedy.
        """
        self.model.check_finite()
        for epoch, loss in enumerate(losses.tolist(), start=1):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} after epoch {epoch}. {LOWER}"
                )
        flags = {
            name: x.isfinite().all() for name, x in self.model.state_dict().items()
        }
        flags["logits"] = self._finite_logits
        finite = torch.stack(list(flags.values())).tolist()
        if bad := [name for name, good in zip(flags, finite, strict=True) if not good]:
            names = ", ".join(bad)
            raise FloatingPointError(
                f"NaN or infinity in {names} after epoch {len(losses)}. {LOWER}"
            )


def training_loss(logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    """Mean loss over nodes.

    "log_cross_entropy" is mean(log(e + CE) - log e) with e = 1 - ln 2: it grows slowly
    for nodes that are badly wrong (the training script of EXACT).

    Of several labels per node it is the binary cross-entropy, the mean over all labels.

    Raises:
        ValueError: if kind is unknown, or has no meaning for several labels.
    """
    if labels.ndim == 2:
        if kind != "cross_entropy":
            raise ValueError(
                "several labels per node train with the binary cross-entropy, loss: "
                f"cross_entropy; got {kind!r}"
            )
        targets = labels.to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits, targets)
    if kind == "cross_entropy":
        return functional.cross_entropy(logits, labels)
    if kind == "log_cross_entropy":
        loss = functional.cross_entropy(logits, labels, reduction="none")
        return (torch.log(LOG_LOSS_OFFSET + loss) - math.log(LOG_LOSS_OFFSET)).mean()
    raise ValueError(
        f"loss must be 'cross_entropy' or 'log_cross_entropy', got {kind!r}"
    )


def micro_f1(given: Tensor, labels: Tensor) -> Tensor:
    """F1 of all labels of all nodes together, 2 TP / (2 TP + FP + FN); 0 without any.

    Args:
        given: which labels are given, (num_nodes, num_labels) bool.
        labels: which are right, of that shape, 0 and 1.
    """
    right = labels.bool()
    both = 2 * (given & right).sum()
    return both / (given.sum() + right.sum()).clamp(min=1)


def chance_accuracy(labels: Tensor) -> float:
    """What the best answer that is the same for all nodes attains.

    The share of the most frequent class; of several labels per node, the micro-F1 of
    giving the k most frequent ones to every node, for the best k.
    """
    if labels.ndim == 1:
        return float(labels.bincount().max() / labels.numel())
    number = labels.sum(dim=0).sort(descending=True).values
    given = torch.arange(1, len(number) + 1, device=number.device) * len(labels)
    scores = 2 * number.cumsum(0) / (given + number.sum())
    return float(scores.max())
