"""Rule measure_bits: chosen bits and fresh networks in, bytes and accuracies out."""

from pathlib import Path

from pipeline_src.experiment.feature_measurement import measure_feature_bits
from pipeline_src.experiment.feature_plans import (
    FeatureMeasurement,
    feature_resume_key,
)
from pipeline_src.experiment.job_log import job_log
from pipeline_src.experiment.parts import parts_folder
from pipeline_src.experiment.records import read_dataset, write_dataset
from pipeline_src.experiment.spec import source_digest
from pipeline_src.gnn.graph_files import read_graph


def main(
    measurement: str, inputs: dict, sources: list[str], config: dict, path: Path
) -> None:
    key = feature_resume_key(measurement, [*inputs.values(), *sources])
    with parts_folder(path, key) as partial_dir:
        record = measure_feature_bits(
            FeatureMeasurement.from_params(measurement),
            read_dataset(inputs["networks"]),
            read_dataset(inputs["selection"]),
            read_graph(inputs["graph"]),
            device=config["device"],
            compile=config["compile"],
            source_digest=source_digest(sources),
            partial_dir=partial_dir,
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
