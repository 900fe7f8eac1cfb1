"""Rule start_search: one graph in, full precision and the bytes of settings out."""

from pathlib import Path

from pipeline_src.graphs.files import read_graph
from pipeline_src.laws.solved_boundaries import read_boundaries
from pipeline_src.records.datasets import write_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.records.parts import parts_folder
from pipeline_src.settings.evaluation import start_search
from pipeline_src.settings.plans import ActivationSearch
from pipeline_src.training.job import Job
from pipeline_src.training.spec import resume_key, source_digest


def main(
    search: ActivationSearch,
    graph_path: str,
    boundaries_path: str | None,
    sources: list[str],
    path: Path,
) -> None:
    key = resume_key(search.run, [graph_path, boundaries_path, *sources])
    with parts_folder(path, key) as partial_dir:
        job = Job(
            read_graph(graph_path),
            read_boundaries(boundaries_path),
            source_digest(sources),
            partial_dir=partial_dir,
        )
        write_dataset(start_search(search, job), path)


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
