"""Rule write_setting_tables: searched and measured settings in, their tables out."""

import logging
from pathlib import Path

from pipeline_src.experiment.records import read_dataset
from pipeline_src.experiment.tables.settings import setting_search_table, setting_table
from pipeline_src.experiment.tables.table import to_csv, to_markdown


def main(settings_path: Path, outputs: dict[str, Path]) -> None:
    settings = read_dataset(settings_path)
    tables = {
        "activation_settings": setting_table(settings),
        "activation_search": setting_search_table(settings),
    }
    for name, table in tables.items():
        outputs[f"{name}.md"].write_text(to_markdown(table), encoding="utf-8")
        outputs[f"{name}.csv"].write_text(to_csv(table), encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(filename=snakemake.log[0], level=logging.INFO)
    main(
        Path(snakemake.input.settings),
        {Path(path).name: Path(path) for path in snakemake.output},
    )
