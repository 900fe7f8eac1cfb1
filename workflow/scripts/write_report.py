"""Rule write_report: finished tables, figures and checks in, one HTML page out."""

from pathlib import Path

from pipeline_src.records import datasets
from pipeline_src.records.job_log import job_log
from pipeline_src.records.whole_files import write_whole
from pipeline_src.report.page import read_figures, write_report


def main(
    runs_path: Path,
    features_path: Path | None,
    settings_path: Path | None,
    table_paths: list[Path],
    figure_paths: list[Path],
    checks_path: Path,
    captions_path: Path,
    report_path: Path,
) -> None:
    page = write_report(
        datasets.read_dataset(runs_path),
        [
            path.read_text(encoding="utf-8")
            for path in table_paths
            if path.suffix == ".md"
        ],
        read_figures(figure_paths),
        captions_path.read_text(encoding="utf-8"),
        checks_path.read_text(encoding="utf-8"),
        datasets.read_dataset(features_path) if features_path else None,
        datasets.read_dataset(settings_path) if settings_path else None,
    )
    write_whole(report_path, page)


if __name__ == "__main__":
    features = snakemake.input.get("features")
    settings = snakemake.input.get("settings")
    with job_log(snakemake):
        main(
            Path(snakemake.input.runs),
            Path(features) if features else None,
            Path(settings) if settings else None,
            [Path(path) for path in snakemake.input.tables],
            [Path(path) for path in snakemake.input.figures],
            Path(snakemake.input.checks),
            Path(snakemake.input.captions),
            Path(snakemake.output.report),
        )
