"""One training: a specification and a job in, a record out.

Every epoch ends with an evaluation; test accuracy is reported at the epoch of the best
validation accuracy, as EXACT does. The loop never waits for the device: losses and
accuracies stay there until progress is reported.
"""

import json
import logging

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pipeline_src.graphs.splits import doubts_about_splits, refuse_empty_splits
from pipeline_src.records import datasets
from pipeline_src.records.parts import read_part
from pipeline_src.training.job import Job
from pipeline_src.training.meters import StepClock
from pipeline_src.training.spec import RunSpec
from pipeline_src.training.step_memory import measure_step_memory
from pipeline_src.training.trainer import Trainer, chance_accuracy

PROGRESS_REPORTS = 10  # per training

log = logging.getLogger(__name__)


def train_run(spec: RunSpec, job: Job) -> xr.Dataset:
    """Train every seed of a cell and return its record.

    Args:
        spec: what to train, and on which device.
        job: with what; its parts are seeds.

    Raises:
        ValueError: if the specification cannot be trained, naming what is missing.
        FloatingPointError: if the loss, an activation, a weight or a logit stops being
            finite, naming run, epoch and remedy.
    """
    job = job.on(spec.device)
    graph = job.graph
    refuse_empty_splits(graph.splits)
    provenance = job.provenance()
    if doubts := doubts_about_splits(graph.labels, graph.splits):
        log.warning("%s: %s", graph.name, "; ".join(doubts))
        provenance["doubts"] = [f"{graph.name}: {doubt}" for doubt in doubts]
    if graph.is_multilabel:
        provenance["accuracy"] = "micro-F1 of several labels per node"
    memory: dict[str, float] | None = None
    parts = []
    for seed in spec.seeds:
        path = job.part(f"seed{seed}")
        if (kept := read_part(path)) is not None:
            log.info("%s seed %d: resumed", spec.cell, seed)
            parts.append(kept)
            continue
        if memory is None:
            memory = measure_step_memory(Trainer(spec, graph, job.boundaries_of, seed))
        scalars, curves = train_seed(Trainer(spec, graph, job.boundaries_of, seed))
        part = datasets.run_record(
            json.dumps(spec.to_json(), sort_keys=True),
            provenance,
            (seed,),
            scalars | memory,
            {name: curve[None] for name, curve in curves.items()},
        )
        if path is not None:
            datasets.write_dataset(part, path)
        parts.append(part)
    return xr.concat(parts, dim="seed", data_vars="all", combine_attrs="override")


def train_seed(trainer: Trainer) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Train to the end: scalars and curves, named as in the run record.

    Raises:
        ValueError: if there is nothing to train, validate or test on.
        FloatingPointError: if the loss or an activation stops being finite.
    """
    refuse_empty_splits(trainer.graph.splits)
    epochs = trainer.spec.training.epochs
    losses = torch.empty(epochs, device=trainer.device)
    accuracies = torch.empty(epochs, 3, device=trainer.device)
    clock = StepClock(trainer.device)
    interval = max(1, epochs // PROGRESS_REPORTS)
    for epoch in range(epochs):
        with clock:
            losses[epoch] = trainer.step(epoch)
        accuracies[epoch] = trainer.evaluate()
        if (epoch + 1) % interval == 0 or epoch + 1 == epochs:
            _report(trainer, epoch, losses, accuracies)
    train, validation, test = accuracies.T.double().cpu().numpy()
    best = int(validation.argmax())
    labels = trainer.graph.labels[trainer.graph.test_index]
    scalars = {
        "test_accuracy": float(test[best]),
        "validation_accuracy": float(validation[best]),
        "best_epoch": float(best + 1),
        "epoch_time": clock.median(),
        "chance_accuracy": chance_accuracy(labels),
        "num_test_nodes": float(len(labels)),
    }
    curves = {
        "loss_curve": losses.double().cpu().numpy(),
        "train_accuracy_curve": train,
        "validation_accuracy_curve": validation,
        "test_accuracy_curve": test,
    }
    return scalars, curves


def _report(trainer: Trainer, epoch: int, losses: Tensor, accuracies: Tensor) -> None:
    """Log progress, and stop where numbers are no longer finite."""
    where = f"{trainer.spec.cell} seed {trainer.seed}"
    try:
        trainer.check_finite(losses[: epoch + 1])
    except FloatingPointError as error:
        raise FloatingPointError(f"{where}: {error}") from None
    _, validation, test = accuracies[epoch].tolist()
    log.info(
        "%s: epoch %d of %d, loss %.4f, validation %.2f %%, test %.2f %%",
        where,
        epoch + 1,
        trainer.spec.training.epochs,
        float(losses[epoch]),
        100 * validation,
        100 * test,
    )
