"""Rule write_byte_books: specifications in, bytes counted from their shapes out."""

import logging
from pathlib import Path

from pipeline_src.experiment.spec import RunSpec
from pipeline_src.experiment.tables.byte_books import byte_books_table
from pipeline_src.experiment.tables.table import to_csv, to_markdown


def main(specs: list[RunSpec], markdown_path: Path, csv_path: Path) -> None:
    table = byte_books_table(specs)
    markdown_path.write_text(to_markdown(table), encoding="utf-8")
    csv_path.write_text(to_csv(table), encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(filename=snakemake.log[0], level=logging.INFO)
    main(
        [
            RunSpec.from_params(text, device="auto", compile="auto")
            for text in snakemake.params.specs
        ],
        Path(snakemake.output.byte_books_md),
        Path(snakemake.output.byte_books_csv),
    )
