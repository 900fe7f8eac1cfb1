"""Time and memory of several methods on one graph, side by side in one process.

The machine's speed drifts, so the methods take turns: one step of each, again and
again. Ratios of medians then mean something even where seconds do not.
"""

import functools
import json
import logging
import math
from collections.abc import Sequence

import xarray as xr

from pipeline_src.experiment import records
from pipeline_src.experiment.meters import measure_time
from pipeline_src.experiment.spec import RunSpec
from pipeline_src.experiment.training import (
    BoundariesOf,
    Trainer,
    describe_device,
    measure_step_memory,
    resolve_device,
)
from pipeline_src.gnn.graphs import Graph

log = logging.getLogger(__name__)


def measure_runs(
    specs: Sequence[RunSpec],
    graph: Graph,
    boundaries_of: BoundariesOf | None = None,
    *,
    timed: Sequence[str],
    warmup: int,
    repeats: int,
    threads: int,
    source_digest: str = "not recorded",
) -> xr.Dataset:
    """Measure memory of every method, and epoch time of those named in timed.

    Args:
        specs: one per method, of one graph and model and device.
        graph: on any device; it is copied to the one of the specs.
        boundaries_of: solved boundaries; needed by methods that do not round evenly.
        timed: names of methods whose training steps are timed, evaluation excluded.
        warmup: steps of each before the clock counts.
        repeats: timed steps of each.
        threads: recorded as provenance.
        source_digest: recorded as provenance.

    Raises:
        ValueError: if timed names a method that specs lack.
    """
    names = [spec.method.name for spec in specs]
    if unknown := sorted(set(timed) - set(names)):
        raise ValueError(f"timed methods must be among {names}, got {unknown}")
    device = resolve_device(specs[0].device)
    graph = graph.to(device)
    books, trainers = [], {}
    for index, spec in enumerate(specs):
        trainer = Trainer(spec, graph, boundaries_of, seed=0)
        books.append(measure_step_memory(trainer))
        log.info("%s: %.2f MiB saved", spec.cell, books[-1]["saved_memory"] / 2**20)
        if spec.method.name in timed:
            trainers[index] = trainer
    epoch_time = [[math.nan] * repeats for _ in specs]
    for repeat in range(-warmup, repeats):
        for index, trainer in trainers.items():
            seconds = measure_time(functools.partial(trainer.step, 0), device)
            if repeat >= 0:
                epoch_time[index][repeat] = seconds
            log.info("%s: step %.3f s", specs[index].cell, seconds)
    return records.measurement_record(
        [json.dumps(spec.to_json(), sort_keys=True) for spec in specs],
        records.describe_provenance(source_digest, describe_device(device), threads),
        {name: [book[name] for book in books] for name in books[0]},
        epoch_time,
    )
