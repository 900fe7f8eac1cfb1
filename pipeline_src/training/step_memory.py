"""Bytes of one training step: kept for backward, at the peak, resident."""

from torch import Tensor
from torch.nn import functional

from pipeline_src.training.batches import Batch
from pipeline_src.training.meters import (
    allocated_bytes,
    measure_memory,
    resident_bytes,
)
from pipeline_src.training.trainer import Trainer, training_loss


def measure_saved_memory(trainer: Trainer) -> tuple[int, int]:
    """Bytes kept for backward: by the published definition, and with the loss side.

    The published definition: what is alive after a forward pass and the loss, less the
    logits of the training nodes and the loss itself. Where training uses the log cross
    entropy it takes nll_loss on raw logits, which keeps the targets alone. With the
    loss side: all that is alive once the loss that is trained on has been formed.
    """
    batch = trainer.first_batch()
    labels, index = batch.labels, batch.train_index
    kind = trainer.spec.training.loss
    logits, forward = measure_memory(lambda: trainer.logits(0, batch), trainer.device)
    loss, trained = measure_memory(
        lambda: training_loss(logits, labels[index], kind), trainer.device
    )
    # The logits are kept by nothing but this function.
    kept = forward.held - allocated_bytes(logits.nbytes)
    with_loss = kept + trained.held
    if kind == "log_cross_entropy":
        del loss
        loss, trained = measure_memory(
            lambda: functional.nll_loss(logits, labels[index]), trainer.device
        )
    return kept + trained.held - allocated_bytes(loss.nbytes), with_loss


def measure_step_memory(trainer: Trainer) -> dict[str, float]:
    """Bytes of one training step; the trainer takes it, and a first if it has not.

    Where an epoch has several batches it is the step on the first of them, which then
    counts as data.

    Returns:
        saved_memory and saved_memory_with_loss, see measure_saved_memory; peak_memory:
        the most that is alive during a step, less model and data; resident_memory:
        model and data.
    """
    batch = trainer.first_batch()
    if not trainer.optimizer.has_stepped:
        trainer.step_on(batch, 0)  # compiles
    trainer.optimizer.zero_grad()
    saved, with_loss = measure_saved_memory(trainer)
    _, step = measure_memory(lambda: trainer.step_on(batch, 0), trainer.device)
    return {
        "saved_memory": saved,
        "saved_memory_with_loss": with_loss,
        "peak_memory": step.peak + resident_bytes(trainer.optimizer.state()),
        "resident_memory": resident_bytes(_resident(trainer, batch)),
    }


def _resident(trainer: Trainer, batch: Batch) -> list[Tensor]:
    """Tensors of model and data."""
    graph = trainer.graph
    adjacencies = [graph.adjacency, graph.adjacency.transposed or graph.adjacency]
    return [
        *trainer.model.parameters(),
        *trainer.model.buffers(),
        trainer.seeds,
        graph.features,
        graph.labels,
        *graph.splits.values(),
        *(tensor for part in adjacencies for tensor in (part.row_pointer, part.column)),
        *trainer.aggregation.tensors(),
        *(batch.features, batch.labels, batch.train_index),
        *batch.aggregation.tensors(),
    ]
