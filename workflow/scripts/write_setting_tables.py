"""Rule write_setting_tables: searched and measured settings in, their tables out."""

from pathlib import Path

from pipeline_src.records.datasets import read_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.records.whole_files import write_whole
from pipeline_src.report.tables.settings import setting_search_table, setting_table
from pipeline_src.report.tables.table import to_csv, to_markdown


def main(settings_path: Path, outputs: dict[str, Path]) -> None:
    settings = read_dataset(settings_path)
    tables = {
        "activation_settings": setting_table(settings),
        "activation_search": setting_search_table(settings),
    }
    for name, table in tables.items():
        write_whole(outputs[f"{name}.md"], to_markdown(table))
        write_whole(outputs[f"{name}.csv"], to_csv(table))


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            Path(snakemake.input.settings),
            {Path(path).name: Path(path) for path in snakemake.output},
        )
