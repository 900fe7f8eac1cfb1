"""Rule train_run: one specification and one graph in, one record out."""

from pathlib import Path

from pipeline_src.graphs.files import read_graph
from pipeline_src.laws.solved_boundaries import read_boundaries
from pipeline_src.records.datasets import write_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.records.parts import parts_folder
from pipeline_src.training.job import Job
from pipeline_src.training.runs import train_run
from pipeline_src.training.spec import RunSpec, resume_key, source_digest


def main(
    spec: RunSpec,
    graph_path: str,
    boundaries_path: str | None,
    sources: list[str],
    record_path: Path,
) -> None:
    key = resume_key(spec, [graph_path, boundaries_path, *sources])
    with parts_folder(record_path, key) as partial_dir:
        job = Job(
            read_graph(graph_path),
            read_boundaries(boundaries_path),
            source_digest(sources),
            partial_dir=partial_dir,
        )
        write_dataset(train_run(spec, job), record_path)


if __name__ == "__main__":
    with job_log(snakemake, echo=True):
        main(
            RunSpec.from_params(
                snakemake.params.spec,
                device=snakemake.config["device"],
                compile=snakemake.config["compile"],
            ),
            snakemake.input.graph,
            snakemake.input.get("boundaries"),
            list(snakemake.input.sources),
            Path(snakemake.output.record),
        )
