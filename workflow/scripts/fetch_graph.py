"""Rule fetch_graph: a source's name in, its verified raw files out."""

import logging
from pathlib import Path

from pipeline_src.graphs.fetching import fetch_graph
from pipeline_src.records.job_log import job_log


def main(source: str, raw: Path, data_mirror: str | None) -> None:
    logging.info("fetching %s from %s", source, data_mirror or "its public address")
    fetch_graph(source, raw, data_mirror)


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            snakemake.wildcards.source,
            Path(snakemake.output.raw),
            # Not a parameter of the rule: another mirror gives the same files.
            snakemake.config["data_mirror"],
        )
