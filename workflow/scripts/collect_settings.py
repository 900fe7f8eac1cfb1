"""Rule collect_settings: every selection and measurement in, one tidy dataset out."""

from pathlib import Path

from pipeline_src.experiment.activation_collecting import collect_settings
from pipeline_src.experiment.job_log import job_log
from pipeline_src.experiment.records import write_dataset


def main(selections: list[str], measurements: list[str], path: Path) -> None:
    write_dataset(collect_settings(selections, measurements), path)


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            list(snakemake.input.selections),
            list(snakemake.input.measurements),
            Path(snakemake.output.settings),
        )
