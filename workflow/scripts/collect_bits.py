"""Rule collect_bits: every selection and measurement in, one tidy dataset out."""

from pathlib import Path

from pipeline_src.experiment.feature_collecting import collect_features
from pipeline_src.experiment.job_log import job_log
from pipeline_src.experiment.records import write_dataset


def main(selections: list[str], measurements: list[str], path: Path) -> None:
    write_dataset(collect_features(selections, measurements), path)


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            list(snakemake.input.selections),
            list(snakemake.input.measurements),
            Path(snakemake.output.features),
        )
