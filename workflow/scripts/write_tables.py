"""Rule write_tables: collected datasets in, every table as Markdown and CSV out."""

import logging
from pathlib import Path

from pipeline_src.experiment import records, tables


def main(
    runs_path: Path,
    distribution_paths: list[Path],
    boundaries_path: Path,
    outputs: dict[str, Path],  # "accuracy_md", "accuracy_csv", ...
) -> None:
    runs = records.read_dataset(runs_path)
    distributions = [records.read_dataset(path) for path in distribution_paths]
    boundaries = records.read_dataset(boundaries_path)
    for name, table in {
        "accuracy": tables.accuracy_table(runs),
        "memory": tables.memory_table(runs),
        "distributions": tables.distribution_table(distributions),
        "boundaries": tables.boundaries_table(boundaries),
    }.items():
        markdown, csv = tables.to_markdown(table), tables.to_csv(table)
        outputs[f"{name}_md"].write_text(markdown, encoding="utf-8")
        outputs[f"{name}_csv"].write_text(csv, encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(filename=snakemake.log[0], level=logging.INFO)
    main(
        Path(snakemake.input.runs),
        [Path(path) for path in snakemake.input.get("distributions", [])],
        Path(snakemake.input.boundaries),
        {name: Path(path) for name, path in snakemake.output.items()},
    )
