"""Rule collect_runs: every run and measurement record in, one tidy dataset out."""

import logging
from pathlib import Path

from pipeline_src.experiment import records


def main(run_paths: list[Path], measurement_paths: list[Path], runs_path: Path) -> None:
    runs = records.collect_runs(run_paths, measurement_paths)
    records.write_dataset(runs, runs_path)


if __name__ == "__main__":
    logging.basicConfig(filename=snakemake.log[0], level=logging.INFO)
    main(
        [Path(path) for path in snakemake.input.get("runs", [])],
        [Path(path) for path in snakemake.input.get("measurements", [])],
        Path(snakemake.output.runs),
    )
