"""Rule train_features: one graph and a block of seeds in, trained networks out."""

from pathlib import Path

from pipeline_src.features.networks import train_networks
from pipeline_src.features.plans import FeatureTraining, feature_resume_key
from pipeline_src.graphs.files import read_graph
from pipeline_src.records.datasets import write_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.records.parts import parts_folder
from pipeline_src.training.job import Job
from pipeline_src.training.spec import source_digest


def main(
    training: str, graph_path: str, sources: list[str], device: str, path: Path
) -> None:
    key = feature_resume_key(training, [graph_path, *sources])
    with parts_folder(path, key) as partial_dir:
        job = Job(
            read_graph(graph_path),
            source_digest=source_digest(sources),
            partial_dir=partial_dir,
        )
        training_plan = FeatureTraining.from_params(training)
        write_dataset(train_networks(training_plan, job.on(device)), path)


if __name__ == "__main__":
    with job_log(snakemake, echo=True):
        main(
            snakemake.params.training,
            snakemake.input.graph,
            list(snakemake.input.sources),
            snakemake.config["device"],
            Path(snakemake.output.networks),
        )
