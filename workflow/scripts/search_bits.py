"""Rule search_bits: networks of selection seeds in, searches and the choice out."""

import logging
import shutil
from pathlib import Path

from pipeline_src.experiment.feature_plans import FeatureSearch, feature_resume_key
from pipeline_src.experiment.feature_selection import select_feature_bits
from pipeline_src.experiment.records import read_dataset, write_dataset
from pipeline_src.experiment.spec import source_digest
from pipeline_src.gnn.graph_files import read_graph


def main(
    search: str,
    networks_path: str,
    graph_path: str,
    sources: list[str],
    device: str,
    path: Path,
) -> None:
    key = feature_resume_key(search, [networks_path, graph_path, *sources])
    archive_dir = path.parent / ".partial" / key
    selection = select_feature_bits(
        FeatureSearch.from_params(search),
        read_dataset(networks_path),
        read_graph(graph_path),
        archive_dir=archive_dir,
        device=device,
        source_digest=source_digest(sources),
    )
    write_dataset(selection, path)
    shutil.rmtree(archive_dir)


if __name__ == "__main__":
    handlers = [logging.FileHandler(snakemake.log[0]), logging.StreamHandler()]
    logging.basicConfig(handlers=handlers, level=logging.INFO, format="%(message)s")
    main(
        snakemake.params.search,
        snakemake.input.networks,
        snakemake.input.graph,
        list(snakemake.input.sources),
        snakemake.config["device"],
        Path(snakemake.output.selection),
    )
