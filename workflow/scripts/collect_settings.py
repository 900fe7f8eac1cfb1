"""Rule collect_settings: every selection and measurement in, one tidy dataset out."""

from pathlib import Path

from pipeline_src.collecting.settings import collect_settings
from pipeline_src.records.datasets import write_dataset
from pipeline_src.records.job_log import job_log


def main(selections: list[str], measurements: list[str], path: Path) -> None:
    write_dataset(collect_settings(selections, measurements), path)


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            list(snakemake.input.selections),
            list(snakemake.input.measurements),
            Path(snakemake.output.settings),
        )
