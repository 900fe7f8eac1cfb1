"""Rule fit_distributions: one capture and the boundaries in, fitted laws out."""

from pathlib import Path

from pipeline_src.laws.distributions import fit_distributions
from pipeline_src.records import datasets
from pipeline_src.records.job_log import job_log


def main(capture_path: Path, boundaries_path: Path, distributions_path: Path) -> None:
    fitted = fit_distributions(
        datasets.read_dataset(capture_path), datasets.read_dataset(boundaries_path)
    )
    datasets.write_dataset(fitted, distributions_path)


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            Path(snakemake.input.capture),
            Path(snakemake.input.boundaries),
            Path(snakemake.output.distributions),
        )
