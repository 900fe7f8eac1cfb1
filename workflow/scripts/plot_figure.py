"""Rule plot_figure: collected datasets in, one figure in every format out."""

from pathlib import Path

from pipeline_src.records.datasets import read_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.records.whole_files import write_whole
from pipeline_src.report.drawing.rendering import render
from pipeline_src.report.figures.gallery import plot_figure


def main(
    figure: str,
    runs_path: Path,
    distribution_paths: list[Path],
    boundaries_path: Path,
    features_path: Path | None,
    settings_path: Path | None,
    figure_paths: list[Path],
) -> None:
    plot = plot_figure(
        figure,
        read_dataset(runs_path),
        [read_dataset(path) for path in distribution_paths],
        read_dataset(boundaries_path),
        read_dataset(features_path) if features_path else None,
        read_dataset(settings_path) if settings_path else None,
    )
    for path in figure_paths:
        write_whole(path, render(plot, path.suffix.removeprefix(".")))


if __name__ == "__main__":
    features = snakemake.input.get("features")
    settings = snakemake.input.get("settings")
    with job_log(snakemake):
        main(
            snakemake.wildcards.figure,
            Path(snakemake.input.runs),
            [Path(path) for path in snakemake.input.get("distributions", [])],
            Path(snakemake.input.boundaries),
            Path(features) if features else None,
            Path(settings) if settings else None,
            [Path(path) for path in snakemake.output],
        )
