"""Rule solve_boundaries: nothing in, the table of solved boundaries out."""

from pathlib import Path

from pipeline_src.laws.boundary_table import boundary_table
from pipeline_src.records import datasets
from pipeline_src.records.job_log import job_log


def main(boundaries_path: Path) -> None:
    datasets.write_dataset(boundary_table(), boundaries_path)


if __name__ == "__main__":
    with job_log(snakemake):
        main(Path(snakemake.output.boundaries))
