"""Rule write_byte_books: specifications in, bytes counted from their shapes out."""

from pathlib import Path

from pipeline_src.records.job_log import job_log
from pipeline_src.records.whole_files import write_whole
from pipeline_src.report.tables.byte_books import byte_books_table
from pipeline_src.report.tables.table import to_csv, to_markdown
from pipeline_src.training.spec import RunSpec


def main(
    specs: list[RunSpec], labels: dict[str, str], markdown_path: Path, csv_path: Path
) -> None:
    table = byte_books_table(specs, labels)
    write_whole(markdown_path, to_markdown(table))
    write_whole(csv_path, to_csv(table))


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            [
                RunSpec.from_params(text, device="auto", compile="auto")
                for text in snakemake.params.specs
            ],
            snakemake.params.labels,
            Path(snakemake.output.byte_books_md),
            Path(snakemake.output.byte_books_csv),
        )
