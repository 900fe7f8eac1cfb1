"""What the workflow costs beside the trainings: a sweep of short runs, and dry runs.

    python tests/cluster/orchestration.py [--cells 10] [--seeds 10] [--publish]

The sweep is made of cells of one network on the embedded digits; a training takes about
one second of one core, and the seeds of a cell share a job. It runs from an empty
folder with one core, to the last record.

Seconds come in two kinds. Wall seconds count other work on the machine too. CPU seconds
are user and system time of Snakemake and of all its jobs, and those of the trainings
were spent in this process by one seed of the same network, once before the sweep and
once after it, as other work slows both; their mean, times the number of runs.
A training is its steps, whose wall seconds the records hold as epoch_time, and the
evaluations that end its epochs, which no record holds; both ratios are given.

--publish writes results/published/orchestration.csv.
"""

import argparse
import csv
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from pipeline_src.configuration.checks import checked_configuration, read_schema
from pipeline_src.configuration.plans import run_specs
from pipeline_src.graphs.embedded import digits_graph
from pipeline_src.records.datasets import read_dataset
from pipeline_src.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "results" / "published" / "orchestration.csv"
WIDTH = 64
CONFIGURATION = """
run: orchestration
device: cpu
compile: false
models:
  sage-2x{width}: {{layer: sage, num_layers: 2, hidden: {width}, batch_norm: true}}
methods:
{methods}
sweeps:
  - graphs: [digits]
    models: [sage-2x{width}]
    methods: [{names}]
    seeds: {seeds}
    seeds_per_job: {seeds}
    training: {{epochs: {epochs}}}
figures: {{formats: [svg]}}
"""


def configuration(cells: int, seeds: int, epochs: int) -> str:
    names = [f"run{index}" for index in range(cells)]
    methods = [f"  {name}: {{label: {name}, policy: full}}" for name in names]
    return CONFIGURATION.format(
        width=WIDTH,
        methods="\n".join(methods),
        names=", ".join(names),
        seeds=seeds,
        epochs=epochs,
    )


def cpu_seconds_of_an_epoch(epochs: int) -> np.ndarray:
    """CPU seconds of a training step, and of the evaluation that follows it: (2,)."""
    torch.set_num_threads(1)
    # The very network of the sweep, with the defaults that the schema fills in.
    schema = read_schema(ROOT / "workflow" / "schemas" / "config.schema.yaml")
    given = yaml.safe_load(configuration(cells=1, seeds=1, epochs=epochs))
    (spec,) = run_specs(checked_configuration(given, schema))
    trainer = Trainer(spec, digits_graph(), None, seed=0)
    trainer.step(0)  # the first one allocates
    step = evaluation = 0.0
    for epoch in range(epochs):
        start = time.process_time()
        trainer.step(epoch)
        middle = time.process_time()
        trainer.evaluate()
        step += middle - start
        evaluation += time.process_time() - middle
    return np.array([step, evaluation]) / epochs


def snakemake(*arguments: str | Path, folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one call, jobs included."""

    def cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before, start = cpu(), time.perf_counter()
    subprocess.run(
        [
            Path(sys.executable).with_name("snakemake"),
            *("--snakefile", ROOT / "Snakefile", "--directory", folder),
            *arguments,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return time.perf_counter() - start, cpu() - before


def recorded_seconds(folder: Path) -> float:
    """Wall seconds of all training steps, as the records hold them."""
    datasets = map(read_dataset, folder.glob("results/*/runs/*.nc"))
    return sum(
        float(data["epoch_time"].sum()) * data.sizes["epoch"] for data in datasets
    )


def sweep_row(cells: int, seeds: int) -> dict[str, object]:
    epochs = round(1 / cpu_seconds_of_an_epoch(epochs=150).sum())
    before = cpu_seconds_of_an_epoch(epochs)
    runs = cells * seeds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config").mkdir()
        text = configuration(cells, seeds, epochs)
        (folder / "config" / "config.yaml").write_text(text)
        wall, cpu = snakemake("--cores", "1", "--until", "train_run", folder=folder)
        recorded = recorded_seconds(folder)
    step, evaluation = (before + cpu_seconds_of_an_epoch(epochs)) / 2
    return {
        "call": "sweep, to the last record",
        "runs": runs,
        "jobs": cells,
        "wall_s": wall,
        "cpu_s": cpu,
        "steps_wall_s": recorded,
        "steps_cpu_s": runs * epochs * step,
        "evaluations_cpu_s": runs * epochs * evaluation,
        "cpu_over_trainings": cpu / (runs * epochs * (step + evaluation)),
        "cpu_over_steps": cpu / (runs * epochs * step),
        "wall_over_steps": wall / recorded,
    }


def dry_run_row(configuration: str) -> dict[str, object]:
    """The quickest of three, so that files are read from memory."""
    path = ROOT / "config" / f"{configuration}.yaml"
    with tempfile.TemporaryDirectory() as name:
        calls = [
            snakemake("-n", "--configfile", path, folder=Path(name)) for _ in range(3)
        ]
    wall, cpu = min(calls)
    return {
        "call": f"dry run of config/{configuration}.yaml",
        "wall_s": wall,
        "cpu_s": cpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--publish", action="store_true")
    arguments = parser.parse_args()
    machine = {
        "device": f"cpu {platform.machine()}",
        "cores": os.cpu_count(),
        "cores_used": 1,
        "load_before": os.getloadavg()[0],
    }
    rows = [
        *map(dry_run_row, ("paper", "benchmark")),
        sweep_row(arguments.cells, arguments.seeds),
    ]
    columns = list(dict.fromkeys(key for row in (rows[-1], *rows) for key in row))
    with PUBLISHED.open("w") if arguments.publish else sys.stdout as file:
        writer = csv.DictWriter(file, [*columns, *machine], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            shown = {
                key: f"{value:.4g}" if isinstance(value, float) else value
                for key, value in (row | machine).items()
            }
            writer.writerow(shown)


if __name__ == "__main__":
    main()
