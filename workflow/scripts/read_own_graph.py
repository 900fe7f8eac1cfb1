"""Rule read_own_graph: a user's file in, a graph in the pipeline's own format out."""

import logging
from pathlib import Path
from typing import Any

from pipeline_src.graphs.files import write_graph
from pipeline_src.graphs.own.given import GivenGraph
from pipeline_src.graphs.own.reading import read_own_graph
from pipeline_src.records.job_log import job_log


def main(name: str, given: dict[str, Any], path: Path) -> None:
    graph, notes = read_own_graph(name, GivenGraph.from_params(given))
    write_graph(graph, path)
    logging.info(
        "%s: %d nodes, %d directed edges, %d features, %d classes",
        name,
        graph.num_nodes,
        graph.adjacency.num_entries,
        graph.num_features,
        graph.num_classes,
    )
    for note in notes:
        logging.info("%s: %s", name, note)


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            snakemake.wildcards.graph,
            snakemake.params.given,
            Path(snakemake.output.graph),
        )
