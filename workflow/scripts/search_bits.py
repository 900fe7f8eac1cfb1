"""Rule search_bits: networks of selection seeds in, searches and the choice out."""

from pathlib import Path

from pipeline_src.features.plans import FeatureSearch, feature_resume_key
from pipeline_src.features.selection import select_feature_bits
from pipeline_src.graphs.files import read_graph
from pipeline_src.records.datasets import read_dataset, write_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.records.parts import parts_folder
from pipeline_src.training.job import Job
from pipeline_src.training.spec import source_digest


def main(
    search: str,
    networks_path: str,
    graph_path: str,
    sources: list[str],
    device: str,
    path: Path,
) -> None:
    key = feature_resume_key(search, [networks_path, graph_path, *sources])
    with parts_folder(path, key) as partial_dir:
        job = Job(
            read_graph(graph_path),
            source_digest=source_digest(sources),
            partial_dir=partial_dir,
        )
        selection = select_feature_bits(
            FeatureSearch.from_params(search),
            read_dataset(networks_path),
            job.on(device),
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
