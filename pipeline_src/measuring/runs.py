"""Time, memory and gradient error of methods on one graph, side by side in one process.

The machine's speed drifts, so the methods take turns: one step of each, again and
again. Ratios of medians then mean something even where seconds do not.
"""

import contextlib
import functools
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import xarray as xr
from torch import Tensor

from pipeline_src.measuring.gradient_error import GradientError, split_error
from pipeline_src.quant.compilers import probe_ahead
from pipeline_src.quant.fusion import fusion_pays, resolve_compile
from pipeline_src.records import datasets
from pipeline_src.training.job import Job
from pipeline_src.training.meters import calls_to_time, measure_time
from pipeline_src.training.spec import MethodSpec, RunSpec
from pipeline_src.training.step_memory import measure_step_memory
from pipeline_src.training.trainer import (
    Trainer,
    training_loss,
)

log = logging.getLogger(__name__)


def measure_runs(
    specs: Sequence[RunSpec],
    job: Job,
    *,
    timed: Sequence[str],
    warmup: int,
    repeats: int,
    gradient_draws: int,
) -> xr.Dataset:
    """Measure memory and gradient error of all methods, epoch time of those in timed.

    Args:
        specs: one per method, of one graph and model and device.
        job: with what all are measured.
        timed: names of methods whose training steps are timed, evaluation excluded.
        warmup: steps of each before the clock counts.
        repeats: timed steps of each; on a GPU several where one is short.
        gradient_draws: see measure_gradient_errors; 0 leaves the error out, as NaN.

    Raises:
        ValueError: if timed names a method that specs lack.
    """
    names = [spec.method.name for spec in specs]
    if unknown := sorted(set(timed) - set(names)):
        raise ValueError(f"timed methods must be among {names}, got {unknown}")
    job = job.on(specs[0].device)
    device = job.device
    scalars: list[dict[str, float]] = []
    trainers = {}
    for index, spec in enumerate(specs):
        trainer = Trainer(spec, job.graph, job.boundaries_of, seed=0)
        first = measure_time(functools.partial(trainer.step, 0), device)
        if index == 0 and _compiles(spec, job):
            probe_ahead()  # beside measurements of memory: no clock runs
        scalars.append({"first_step_time": first, **measure_step_memory(trainer)})
        log.info("%s: %.2f MiB saved", spec.cell, scalars[-1]["saved_memory"] / 2**20)
        if spec.method.name in timed:
            trainers[index] = trainer
    epoch_time = [[math.nan] * repeats for _ in specs]
    calls = dict.fromkeys(trainers, 1)
    for repeat in range(-warmup, repeats):
        for index, trainer in trainers.items():
            step = functools.partial(trainer.step, 0)
            seconds = measure_time(step, device, calls[index])
            if repeat >= 0:
                epoch_time[index][repeat] = seconds
            else:
                calls[index] = calls_to_time(seconds, device)
            log.info("%s: step %.3f s", specs[index].cell, seconds)
    del trainers
    errors = [GradientError(math.nan, math.nan, math.nan)] * len(specs)
    if gradient_draws:
        errors = measure_gradient_errors(specs, job, steps=warmup, draws=gradient_draws)
    for row, error in zip(scalars, errors, strict=True):
        row["gradient_error"] = error.total
        row["gradient_bias"] = error.bias
        row["gradient_bias_standard_error"] = error.bias_standard_error
        row["gradient_variance"] = error.variance
    return datasets.measurement_record(
        [json.dumps(spec.to_json(), sort_keys=True) for spec in specs],
        job.provenance(),
        {name: [row[name] for row in scalars] for name in scalars[0]},
        epoch_time,
    )


def _compiles(spec: RunSpec, job: Job) -> bool:
    """True if kernels will be compiled for a CPU."""
    choice = resolve_compile(spec.compile, job.device)
    values = job.graph.num_nodes * spec.model.hidden
    return job.device.type == "cpu" and fusion_pays(values, job.device, choice)


def measure_gradient_errors(
    specs: Sequence[RunSpec],
    job: Job,  # on the device to measure on
    *,
    steps: int,
    draws: int,
) -> list[GradientError]:
    """Relative squared error of the weight gradients against full precision.

    sum |G - F|**2 / sum |F|**2 over the weight matrices of all convolutions, F being
    the gradient that the same network has at the same parameters, with the same masks
    of ReLU and Dropout, when nothing is compressed; the mean over draws of the noise,
    and its bias and variance apart. Parameters are those after a few steps in full
    precision.
    """
    groups: dict[MethodSpec, list[int]] = {}
    for index, spec in enumerate(specs):
        groups.setdefault(reference_of(spec.method), []).append(index)
    errors = [GradientError(math.nan, math.nan, math.nan)] * len(specs)
    for reference, members in groups.items():
        # More epochs than the plan's, so that each draw has noise of its own.
        training = replace(specs[0].training, epochs=steps + draws)
        spec = replace(specs[0], method=reference, training=training)
        exact = Trainer(spec, job.graph, job.boundaries_of, seed=0)
        for step in range(steps):
            exact.step(step)
        state = exact.model.state_dict()
        expected = _weight_gradients(exact, steps, draws)
        for index in members:
            spec = replace(specs[index], training=training)
            trainer = Trainer(spec, job.graph, job.boundaries_of, seed=0)
            trainer.model.load_state_dict(state)
            _share_seeds(exact, trainer)
            with drawing_as_eager(spec.method):
                found = _weight_gradients(trainer, steps, draws)
            error = errors[index] = split_error(found, expected)
            if not math.isfinite(error.total):  # NaN would read as not measured
                raise FloatingPointError(
                    f"{spec.cell}: the gradient error is {error.total} after {steps}"
                    " steps. Lower learning_rate or set gradient_clip."
                )
            log.info(
                "%s: gradient error %.2e, of it bias %.2e",
                spec.cell,
                error.total,
                error.bias,
            )
    return errors


def reference_of(method: MethodSpec) -> MethodSpec:
    """The method that keeps everything and drops the same activations."""
    neutral = MethodSpec("reference", "reference", "full")
    if method.policy in ("pyg", "compress"):  # of the same layers
        return replace(neutral, policy="pyg")
    if method.policy == "lean":
        return replace(neutral, policy="lean", rows_per_block=8)
    return neutral


@contextlib.contextmanager
def drawing_as_eager(method: MethodSpec) -> Iterator[None]:
    """Let a compiled network drop what eager ones drop: it is compiled anew for it."""
    if method.technique != "compiled":
        yield
        return
    from torch._inductor import config

    torch.compiler.reset()
    with config.patch(fallback_random=True):
        yield
    torch.compiler.reset()


def _weight_gradients(trainer: Trainer, first: int, draws: int) -> Tensor:
    """Of some epochs, (draws, num_parameters)."""
    epochs = range(first, first + draws)
    return torch.stack([weight_gradient(trainer, epoch) for epoch in epochs])


def weight_gradient(trainer: Trainer, epoch: int) -> Tensor:
    """Gradients of the weight matrices at the present parameters, in one vector."""
    torch.manual_seed(epoch)  # of Dropout, where it is drawn from torch's generator
    trainer.optimizer.zero_grad()
    labels = trainer.graph.labels[trainer.graph.train_index]
    logits = trainer.logits(epoch)
    training_loss(logits, labels, trainer.spec.training.loss).backward()
    gradients = [
        parameter.grad.flatten()
        for parameter in trainer.model.parameters()
        if parameter.dim() == 2 and parameter.grad is not None
    ]
    return torch.cat(gradients)


def _share_seeds(reference: Trainer, trainer: Trainer) -> None:
    """Give activations of one name one seed: lean draws Dropout from it."""
    known = reference.model.activation_names
    for column, name in enumerate(trainer.model.activation_names):
        if name in known:
            trainer.seeds[:, column] = reference.seeds[:, known.index(name)]
