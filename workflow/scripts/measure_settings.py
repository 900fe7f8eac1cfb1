"""Rule measure_settings: chosen settings in, accuracy and bytes on fresh seeds out."""

from pathlib import Path

from pipeline_src.graphs.files import read_graph
from pipeline_src.laws.solved_boundaries import read_boundaries
from pipeline_src.records.datasets import read_dataset, write_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.records.parts import parts_folder
from pipeline_src.settings.measurement import measure_settings
from pipeline_src.settings.plans import methods_from_params
from pipeline_src.training.job import Job
from pipeline_src.training.spec import RunSpec, resume_key, source_digest


def main(
    block: RunSpec,
    methods: str,
    inputs: dict[str, str],  # graph, selection, perhaps boundaries
    sources: list[str],
    path: Path,
) -> None:
    key = resume_key(block, [*inputs.values(), *sources])
    with parts_folder(path, key) as partial_dir:
        job = Job(
            read_graph(inputs["graph"]),
            read_boundaries(inputs.get("boundaries")),
            source_digest(sources),
            partial_dir=partial_dir,
        )
        selection = read_dataset(inputs["selection"])
        record = measure_settings(block, methods_from_params(methods), selection, job)
        write_dataset(record, path)


if __name__ == "__main__":
    with job_log(snakemake, echo=True):
        config, names = snakemake.config, ("graph", "selection", "boundaries")
        main(
            RunSpec.from_params(
                snakemake.params.block,
                device=config["device"],
                compile=config["compile"],
            ),
            snakemake.params.methods,
            {
                name: snakemake.input[name]
                for name in names
                if snakemake.input.get(name)
            },
            list(snakemake.input.sources),
            Path(snakemake.output.measurement),
        )
