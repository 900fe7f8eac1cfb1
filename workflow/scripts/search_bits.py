"""Rule search_bits: networks of selection seeds in, searches and the choice out."""

from pathlib import Path

from pipeline_src.experiment.feature_plans import FeatureSearch, feature_resume_key
from pipeline_src.experiment.feature_selection import select_feature_bits
from pipeline_src.experiment.job_log import job_log
from pipeline_src.experiment.parts import parts_folder
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
    with parts_folder(path, key) as archive_dir:
        selection = select_feature_bits(
            FeatureSearch.from_params(search),
            read_dataset(networks_path),
            read_graph(graph_path),
            archive_dir=archive_dir,
            device=device,
            source_digest=source_digest(sources),
        )
        write_dataset(selection, path)


if __name__ == "__main__":
    with job_log(snakemake, echo=True):
        main(
            snakemake.params.search,
            snakemake.input.networks,
            snakemake.input.graph,
            list(snakemake.input.sources),
            snakemake.config["device"],
            Path(snakemake.output.selection),
        )
