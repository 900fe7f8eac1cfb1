"""Rule measure_bits: chosen bits and fresh networks in, bytes and accuracies out."""

from pathlib import Path

from pipeline_src.features.measurement import measure_feature_bits
from pipeline_src.features.plans import (
    FeatureMeasurement,
    feature_resume_key,
)
from pipeline_src.graphs.files import read_graph
from pipeline_src.records.datasets import read_dataset, write_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.records.parts import parts_folder
from pipeline_src.training.job import Job
from pipeline_src.training.spec import source_digest


def main(
    measurement: str, inputs: dict, sources: list[str], config: dict, path: Path
) -> None:
    key = feature_resume_key(measurement, [*inputs.values(), *sources])
    with parts_folder(path, key) as partial_dir:
        job = Job(
            read_graph(inputs["graph"]),
            source_digest=source_digest(sources),
            partial_dir=partial_dir,
        )
        record = measure_feature_bits(
            FeatureMeasurement.from_params(measurement),
            read_dataset(inputs["networks"]),
            read_dataset(inputs["selection"]),
            job.on(config["device"]),
            compile=config["compile"],
        )
        write_dataset(record, path)


if __name__ == "__main__":
    with job_log(snakemake, echo=True):
        main(
            snakemake.params.measurement,
            {
                name: snakemake.input[name]
                for name in ("networks", "selection", "graph")
            },
            list(snakemake.input.sources),
            snakemake.config,
            Path(snakemake.output.measurement),
        )
