"""Rule start_search: one graph in, full precision and the bytes of settings out."""

from pathlib import Path

from pipeline_src.experiment.activation_evaluation import start_search
from pipeline_src.experiment.activation_plans import ActivationSearch
from pipeline_src.experiment.job_log import job_log
from pipeline_src.experiment.parts import parts_folder
from pipeline_src.experiment.records import write_dataset
from pipeline_src.experiment.solved_boundaries import read_boundaries
from pipeline_src.experiment.spec import resume_key, source_digest
from pipeline_src.gnn.graph_files import read_graph


def main(
    search: ActivationSearch,
    graph_path: str,
    boundaries_path: str | None,
    sources: list[str],
    path: Path,
) -> None:
    key = resume_key(search.run, [graph_path, boundaries_path, *sources])
    with parts_folder(path, key) as partial_dir:
        start = start_search(
            search,
            read_graph(graph_path),
            read_boundaries(boundaries_path),
            partial_dir=partial_dir,
            source_digest=source_digest(sources),
        )
        write_dataset(start, path)


if __name__ == "__main__":
    with job_log(snakemake, echo=True):
        main(
            ActivationSearch.from_params(
                snakemake.params.search,
                device=snakemake.config["device"],
                compile=snakemake.config["compile"],
            ),
            snakemake.input.graph,
            snakemake.input.get("boundaries"),
            list(snakemake.input.sources),
            Path(snakemake.output.start),
        )
