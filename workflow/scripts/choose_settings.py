"""Rule choose_settings: the last round and its accuracies in, the answers out."""

from pathlib import Path

from pipeline_src.records.datasets import read_dataset, write_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.settings.choice import choose_settings


def main(start_path: str, last_path: str, evaluations: list[str], path: Path) -> None:
    selection = choose_settings(
        read_dataset(start_path),
        read_dataset(last_path),
        [read_dataset(part) for part in evaluations],
    )
    write_dataset(selection, path)


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            snakemake.input.start,
            snakemake.input.last,
            list(snakemake.input.evaluations),
            Path(snakemake.output.selection),
        )
