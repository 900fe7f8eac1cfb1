"""One training by several processes, from its first epoch to its last."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_src.distributed.trainer import PartTrainer


@dataclass(frozen=True, eq=False)
class Curves:
    """Of each epoch so far, the same on all ranks; on the CPU."""

    losses: Tensor  # (num_epochs,)
    accuracies: Tensor  # (num_epochs, 3): train, validation, test

    @property
    def test_accuracy(self) -> float:
        """At the epoch of the best validation accuracy, as training/runs.py."""
        _, validation, test = self.accuracies.T
        return float(test[validation.argmax()])


def train_part(
    trainer: PartTrainer,
    before: Curves | None = None,  # epochs that were trained already
    after_epoch: Callable[[Curves], None] | None = None,
) -> Curves:
    """Train to the end, evaluating after each epoch; all ranks call it together.

    Raises:
        FloatingPointError: on all ranks, if on any of them a number stopped being
            finite.
    """
    losses = [] if before is None else list(before.losses)
    accuracies = [] if before is None else list(before.accuracies)
    for epoch in range(len(losses), trainer.spec.training.epochs):
        loss = trainer.step(epoch)
        trainer.check_finite(loss, epoch)
        losses.append(loss.cpu())
        accuracies.append(trainer.evaluate().cpu())
        if after_epoch is not None:
            after_epoch(Curves(torch.stack(losses), torch.stack(accuracies)))
    return Curves(torch.stack(losses), torch.stack(accuracies))
