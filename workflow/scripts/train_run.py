"""Rule train_run: one specification and one graph in, one record out."""

from pathlib import Path

from pipeline_src.experiment.job_log import job_log
from pipeline_src.experiment.parts import parts_folder
from pipeline_src.experiment.records import write_dataset
from pipeline_src.experiment.solved_boundaries import read_boundaries
from pipeline_src.experiment.spec import RunSpec, resume_key, source_digest
from pipeline_src.experiment.training import train_run
from pipeline_src.gnn.graph_files import read_graph


def main(
    spec: RunSpec,
    graph_path: str,
    boundaries_path: str | None,
    sources: list[str],
    record_path: Path,
) -> None:
    key = resume_key(spec, [graph_path, boundaries_path, *sources])
    with parts_folder(record_path, key) as partial_dir:
        record = train_run(
            spec,
            read_graph(graph_path),
            read_boundaries(boundaries_path),
            source_digest=source_digest(sources),
            partial_dir=partial_dir,
        )
        write_dataset(record, record_path)


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
