"""Rule capture_activations: one training in, the positions of what it keeps out."""

from pathlib import Path

from pipeline_src.graphs.files import read_graph
from pipeline_src.laws.solved_boundaries import read_boundaries
from pipeline_src.records.datasets import write_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.training.capture import capture_activations
from pipeline_src.training.job import Job
from pipeline_src.training.spec import RunSpec, source_digest


def main(
    spec: RunSpec,
    epochs: list[int],
    graph_path: str,
    boundaries_path: str | None,
    sources: list[str],
    capture_path: Path,
) -> None:
    job = Job(
        read_graph(graph_path),
        read_boundaries(boundaries_path),
        source_digest(sources),
    )
    write_dataset(capture_activations(spec, job, epochs), capture_path)


if __name__ == "__main__":
    with job_log(snakemake, echo=True):
        main(
            RunSpec.from_params(
                snakemake.params.spec,
                device=snakemake.config["device"],
                compile=snakemake.config["compile"],
            ),
            list(snakemake.params.epochs),
            snakemake.input.graph,
            snakemake.input.get("boundaries"),
            list(snakemake.input.sources),
            Path(snakemake.output.capture),
        )
