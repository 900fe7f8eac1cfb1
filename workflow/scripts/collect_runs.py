"""Rule collect_runs: every run and measurement record in, one tidy dataset out."""

from pathlib import Path

from pipeline_src.collecting.runs import collect_runs
from pipeline_src.records.datasets import write_dataset
from pipeline_src.records.job_log import job_log


def main(
    run_paths: list[Path],
    measurement_paths: list[Path],
    labels: dict[str, str],
    asked: dict[str, list[str]],
    runs_path: Path,
) -> None:
    runs = collect_runs(run_paths, measurement_paths, labels, asked)
    write_dataset(runs, runs_path)


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            [Path(path) for path in snakemake.input.get("runs", [])],
            [Path(path) for path in snakemake.input.get("measurements", [])],
            snakemake.params.labels,
            snakemake.params.asked,
            Path(snakemake.output.runs),
        )
