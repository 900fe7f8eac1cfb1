"""Rule prepare_graph: raw files, or none for an embedded graph, in; one file out."""

import logging
from pathlib import Path

from pipeline_src.graphs.embedded import EMBEDDED_GRAPHS
from pipeline_src.graphs.files import write_graph
from pipeline_src.graphs.raw import read_raw_graph
from pipeline_src.records.job_log import job_log


def main(name: str, raw: Path | None, path: Path) -> None:
    graph = EMBEDDED_GRAPHS[name]() if raw is None else read_raw_graph(name, raw)
    write_graph(graph, path)
    logging.info(
        "%s: %d nodes, %d directed edges, %d features, %d classes",
        name,
        graph.num_nodes,
        graph.adjacency.num_entries,
        graph.num_features,
        graph.num_classes,
    )


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            snakemake.wildcards.graph,
            Path(snakemake.input.raw) if snakemake.input.raw else None,
            Path(snakemake.output.graph),
        )
