"""Rule write_report: finished tables, figures and checks in, one HTML page out."""

import logging
from pathlib import Path

from pipeline_src.experiment import records, report


def main(
    runs_path: Path,
    features_path: Path | None,
    table_paths: list[Path],
    figure_paths: list[Path],
    checks_path: Path,
    captions_path: Path,
    report_path: Path,
) -> None:
    page = report.write_report(
        records.read_dataset(runs_path),
        [
            path.read_text(encoding="utf-8")
            for path in table_paths
            if path.suffix == ".md"
        ],
        report.read_figures(figure_paths),
        captions_path.read_text(encoding="utf-8"),
        checks_path.read_text(encoding="utf-8"),
        records.read_dataset(features_path) if features_path else None,
    )
    report_path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(filename=snakemake.log[0], level=logging.INFO)
    features = snakemake.input.get("features")
    main(
        Path(snakemake.input.runs),
        Path(features) if features else None,
        [Path(path) for path in snakemake.input.tables],
        [Path(path) for path in snakemake.input.figures],
        Path(snakemake.input.checks),
        Path(snakemake.input.captions),
        Path(snakemake.output.report),
    )
