"""Trainings that judge settings of activation compression on validation nodes.

Memory is computed, never learned: what is saved comes from the byte books, and the peak
of a step is measured once for each setting, which trains nothing. Accuracy is the mean
of the selection seeds' best validation accuracies; full precision, trained from the
same seeds, is the baseline. Test nodes are not looked at.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from pipeline_src.measuring.byte_books import saved_bytes
from pipeline_src.records import datasets
from pipeline_src.records.parts import read_part
from pipeline_src.search.space import Configuration
from pipeline_src.settings.plans import MIB, ActivationSearch
from pipeline_src.settings.space import (
    all_settings,
    method_of,
    setting_text,
)
from pipeline_src.training.job import Job
from pipeline_src.training.runs import train_seed
from pipeline_src.training.spec import MethodSpec, RunSpec
from pipeline_src.training.step_memory import measure_step_memory
from pipeline_src.training.trainer import Trainer

log = logging.getLogger(__name__)


def start_search(search: ActivationSearch, job: Job) -> xr.Dataset:
    """What a search knows before its first round.

    Args:
        search: what is searched for.
        job: with what; its parts are accuracies and peaks, one of each training.

    Returns:
        Dims setting (bytes of every one), seed (accuracies of full precision); the
        attribute baseline is the mean of the latter, full_memory its bytes.

    Raises:
        ValueError: if no setting is as small as max_memory asks for.
        FloatingPointError: if full precision diverges, which leaves no baseline.
    """
    job = job.on(search.run.device)
    settings = all_settings(search)
    methods = [search.run.method, *(method_of(search, one) for one in settings)]
    memory = [_memory(search, method, job) for method in methods]
    _require_reachable(search, settings, memory[1:])
    accuracy = _accuracies(search.run, job)
    if not accuracy.all():
        raise FloatingPointError(
            "full precision diverged, so there is nothing to compare with; lower"
            " learning_rate or set gradient_clip"
        )
    return xr.Dataset(
        {
            "memory": ("setting", memory[1:], datasets.attributes("byte", "memory")),
            "full_accuracy": (
                "seed",
                accuracy,
                datasets.attributes("1", "validation accuracy of full precision"),
            ),
        },
        {"setting": _setting_coord(settings), "seed": _seed_coord(search.run.seeds)},
        {
            "search": search.to_params(),
            "baseline": float(accuracy.mean()),
            "full_memory": memory[0],
            "num_nodes": job.graph.num_nodes,
            "provenance": job.provenance_text(),
        },
    )


def evaluate_settings(
    search: ActivationSearch,
    settings: Sequence[Configuration],
    job: Job,
) -> xr.Dataset:
    """Train every setting with every selection seed.

    Args:
        search: what is searched for.
        settings: configurations of its space.
        job: with what; its parts are accuracies, one of each training.

    Returns:
        Validation accuracies, dims (setting, seed); 0 where a training diverged.
    """
    job = job.on(search.run.device)
    rows = []
    for setting in settings:
        run = replace(search.run, method=method_of(search, setting))
        rows.append(_accuracies(run, job))
        log.info("%s: validation %.2f %%", run.method.label, 100 * rows[-1].mean())
    shape = len(settings), len(search.run.seeds)
    return xr.Dataset(
        {
            "accuracy": (
                ("setting", "seed"),
                np.array(rows).reshape(shape),
                datasets.attributes("1", "validation accuracy"),
            )
        },
        {"setting": _setting_coord(settings), "seed": _seed_coord(search.run.seeds)},
    )


def _require_reachable(
    search: ActivationSearch, settings: Sequence[Configuration], memory: list[float]
) -> None:
    least = min(memory)
    if least > search.aims.get("max_memory", least):
        smallest = method_of(search, settings[memory.index(least)])
        raise ValueError(
            f"max_memory must be at least {least / MIB:.4g} MiB, which the smallest"
            f" setting takes ({smallest.label}), got {search.max_memory}"
        )


def _accuracies(run: RunSpec, job: Job) -> np.ndarray:
    """Best validation accuracy of each seed, (num_seeds,); 0 for one that diverged."""

    def train(seed: int) -> float:
        try:
            trainer = Trainer(run, job.graph, job.boundaries_of, seed)
            scalars, _ = train_seed(trainer)
        except FloatingPointError as error:
            log.warning("counts as accuracy 0: %s", error)
            return 0.0
        return scalars["validation_accuracy"]

    return np.array(
        [
            _kept(job, [run.to_json(), seed], functools.partial(train, seed))
            for seed in run.seeds
        ]
    )


def _memory(search: ActivationSearch, method: MethodSpec, job: Job) -> float:
    """Bytes by the objective of the search."""
    run = replace(search.run, method=method)
    if search.objective == "saved":
        return saved_bytes(run.model, method, job.graph.sizes, run.training.loss)

    def measure() -> float:
        trainer = Trainer(run, job.graph, job.boundaries_of, run.seeds[0])
        return measure_step_memory(trainer)["peak_memory"]

    return _kept(job, [run.to_json(), "peak"], measure)


def _kept(job: Job, key: list[Any], make: Callable[[], float]) -> float:
    """The number that make returns, or that an earlier call kept for the key."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = job.part(name)
    if path is None:
        return make()
    part = read_part(path)
    if part is None:
        part = xr.Dataset({"number": ((), make())})
        datasets.write_dataset(part, path)
    return float(part["number"])


def _setting_coord(settings: Sequence[Configuration]) -> tuple[Any, ...]:
    texts = [setting_text(setting) for setting in settings]
    return datasets.text_coord("setting", texts, "setting as JSON")


def _seed_coord(seeds: Sequence[int]) -> tuple[Any, ...]:
    return "seed", np.array(seeds, np.int64), datasets.attributes("1", "random seed")
