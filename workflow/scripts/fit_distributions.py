"""Rule fit_distributions: one capture and the boundaries in, fitted laws out."""

from pathlib import Path

from pipeline_src.experiment import records
from pipeline_src.experiment.distributions import fit_distributions
from pipeline_src.experiment.job_log import job_log


def main(capture_path: Path, boundaries_path: Path, distributions_path: Path) -> None:
    fitted = fit_distributions(
        records.read_dataset(capture_path), records.read_dataset(boundaries_path)
    )
    records.write_dataset(fitted, distributions_path)


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            Path(snakemake.input.capture),
            Path(snakemake.input.boundaries),
            Path(snakemake.output.distributions),
        )
