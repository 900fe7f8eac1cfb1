"""Rule collect_bits: every selection and measurement in, one tidy dataset out."""

from pathlib import Path

from pipeline_src.collecting.features import collect_features
from pipeline_src.records.datasets import write_dataset
from pipeline_src.records.job_log import job_log


def main(selections: list[str], measurements: list[str], path: Path) -> None:
    write_dataset(collect_features(selections, measurements), path)


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            list(snakemake.input.selections),
            list(snakemake.input.measurements),
            Path(snakemake.output.features),
        )
