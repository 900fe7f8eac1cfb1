"""Rule benchmark_training: all methods on one graph and model in, one record out."""

from pathlib import Path

import torch

from pipeline_src.graphs.files import read_graph
from pipeline_src.laws.solved_boundaries import read_boundaries
from pipeline_src.measuring.runs import measure_runs
from pipeline_src.records.datasets import write_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.training.job import Job
from pipeline_src.training.spec import RunSpec, source_digest


def main(
    specs: list[RunSpec],
    graph_path: str,
    boundaries_path: str | None,
    sources: list[str],
    plan: dict,
    threads: int,
    measurement_path: Path,
) -> None:
    torch.set_num_threads(threads)
    job = Job(
        read_graph(graph_path),
        read_boundaries(boundaries_path),
        source_digest(sources),
    )
    write_dataset(measure_runs(specs, job, **plan), measurement_path)


if __name__ == "__main__":
    config = snakemake.config
    with job_log(snakemake, echo=True):
        main(
            [
                RunSpec.from_params(
                    text, device=config["device"], compile=config["compile"]
                )
                for text in snakemake.params.specs
            ],
            snakemake.input.graph,
            snakemake.input.get("boundaries"),
            list(snakemake.input.sources),
            {
                key: snakemake.params[key]
                for key in ("timed", "warmup", "repeats", "gradient_draws")
            },
            snakemake.threads,
            Path(snakemake.output.measurement),
        )
