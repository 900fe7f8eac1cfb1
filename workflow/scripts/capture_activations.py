"""Rule capture_activations: one training in, the positions of what it keeps out."""

from pathlib import Path

from pipeline_src.experiment.capture import capture_activations
from pipeline_src.experiment.job_log import job_log
from pipeline_src.experiment.records import write_dataset
from pipeline_src.experiment.solved_boundaries import read_boundaries
from pipeline_src.experiment.spec import RunSpec, source_digest
from pipeline_src.gnn.graph_files import read_graph


def main(
    spec: RunSpec,
    epochs: list[int],
    graph_path: str,
    boundaries_path: str | None,
    sources: list[str],
    capture_path: Path,
) -> None:
    capture = capture_activations(
        spec,
        read_graph(graph_path),
        epochs,
        read_boundaries(boundaries_path),
        source_digest=source_digest(sources),
    )
    write_dataset(capture, capture_path)


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
