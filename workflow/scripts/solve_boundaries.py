"""Rule solve_boundaries: nothing in, the table of solved boundaries out."""

import logging
from pathlib import Path

from pipeline_src.experiment import records
from pipeline_src.experiment.boundary_table import boundary_table


def main(boundaries_path: Path) -> None:
    records.write_dataset(boundary_table(), boundaries_path)


if __name__ == "__main__":
    logging.basicConfig(filename=snakemake.log[0], level=logging.INFO)
    main(Path(snakemake.output.boundaries))
