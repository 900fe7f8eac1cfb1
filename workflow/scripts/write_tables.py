"""Rule write_tables: collected datasets in, every table as Markdown and CSV out."""

from pathlib import Path

from pipeline_src.records.datasets import read_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.records.whole_files import write_whole
from pipeline_src.report.tables.ablation import ablation_table
from pipeline_src.report.tables.accuracy import accuracy_table
from pipeline_src.report.tables.boundaries import boundaries_table
from pipeline_src.report.tables.distributions import distribution_table
from pipeline_src.report.tables.features import feature_tables
from pipeline_src.report.tables.kernels import kernel_table
from pipeline_src.report.tables.memory import memory_table
from pipeline_src.report.tables.table import to_csv, to_markdown
from pipeline_src.report.tables.training import training_table
from pipeline_src.training.spec import RunSpec


def main(
    runs_path: Path,
    distribution_paths: list[Path],
    boundaries_path: Path,
    kernels_path: Path | None,
    features_path: Path | None,
    counted: list[RunSpec],
    labels: dict[str, str],
    outputs: dict[str, Path],  # "accuracy.md", "accuracy.csv", ...
) -> None:
    runs = read_dataset(runs_path)
    tables = {
        "accuracy": accuracy_table(runs),
        "memory": memory_table(runs, counted, labels),
        "training": training_table(runs),
        "ablation": ablation_table(runs),
        "distributions": distribution_table([*map(read_dataset, distribution_paths)]),
        "boundaries": boundaries_table(read_dataset(boundaries_path)),
    }
    if kernels_path:
        tables["kernels"] = kernel_table(read_dataset(kernels_path))
    tables |= feature_tables(read_dataset(features_path)) if features_path else {}
    for name, table in tables.items():
        write_whole(outputs[f"{name}.md"], to_markdown(table))
        write_whole(outputs[f"{name}.csv"], to_csv(table))


if __name__ == "__main__":
    kernels = snakemake.input.get("kernels")
    features = snakemake.input.get("features")
    with job_log(snakemake):
        main(
            Path(snakemake.input.runs),
            [Path(path) for path in snakemake.input.get("distributions", [])],
            Path(snakemake.input.boundaries),
            Path(kernels) if kernels else None,
            Path(features) if features else None,
            [RunSpec.from_params(text) for text in snakemake.params.counted],
            snakemake.params.labels,
            {Path(path).name: Path(path) for path in snakemake.output},
        )
