"""Rule evaluate_settings: proposals of a round in, accuracies of a part of them out."""

from pathlib import Path

from pipeline_src.graphs.files import read_graph
from pipeline_src.laws.solved_boundaries import read_boundaries
from pipeline_src.records.datasets import read_dataset, write_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.records.parts import parts_folder
from pipeline_src.settings.evaluation import evaluate_settings
from pipeline_src.settings.plans import ActivationSearch
from pipeline_src.settings.space import waiting_settings
from pipeline_src.training.job import Job
from pipeline_src.training.spec import resume_key


def main(
    search: ActivationSearch,
    part: slice,
    inputs: dict[str, str],  # graph, proposals, perhaps boundaries
    sources: list[str],
    path: Path,
) -> None:
    key = resume_key(search.run, [*inputs.values(), *sources])
    with parts_folder(path, key) as partial_dir:
        job = Job(
            read_graph(inputs["graph"]),
            read_boundaries(inputs.get("boundaries")),
            partial_dir=partial_dir,
        )
        settings = waiting_settings(read_dataset(inputs["proposals"]))[part]
        write_dataset(evaluate_settings(search, settings, job), path)


if __name__ == "__main__":
    with job_log(snakemake, echo=True):
        config, size = snakemake.config, snakemake.params.evaluations_per_job
        first = int(snakemake.params.part) * size
        names = ("graph", "proposals", "boundaries")
        main(
            ActivationSearch.from_params(
                snakemake.params.search,
                device=config["device"],
                compile=config["compile"],
            ),
            slice(first, first + size),
            {
                name: snakemake.input[name]
                for name in names
                if snakemake.input.get(name)
            },
            list(snakemake.input.sources),
            Path(snakemake.output.evaluations),
        )
