"""Rule evaluate_settings: proposals of a round in, accuracies of a part of them out."""

import logging
import shutil
from pathlib import Path

from pipeline_src.experiment.activation_evaluation import evaluate_settings
from pipeline_src.experiment.activation_plans import ActivationSearch
from pipeline_src.experiment.activation_space import waiting_settings
from pipeline_src.experiment.records import read_dataset, write_dataset
from pipeline_src.experiment.solved_boundaries import read_boundaries
from pipeline_src.experiment.spec import resume_key
from pipeline_src.gnn.graph_files import read_graph


def main(
    search: ActivationSearch,
    part: slice,
    inputs: dict[str, str],  # graph, proposals, perhaps boundaries
    sources: list[str],
    path: Path,
) -> None:
    key = resume_key(search.run, [*inputs.values(), *sources])
    partial_dir = path.parent / ".partial" / f"{path.stem}-{key}"
    partial_dir.mkdir(parents=True, exist_ok=True)
    edges = inputs.get("boundaries")
    evaluations = evaluate_settings(
        search,
        waiting_settings(read_dataset(inputs["proposals"]))[part],
        read_graph(inputs["graph"]),
        read_boundaries(edges) if edges else None,
        partial_dir=partial_dir,
    )
    write_dataset(evaluations, path)
    shutil.rmtree(partial_dir)


if __name__ == "__main__":
    handlers = [logging.FileHandler(snakemake.log[0]), logging.StreamHandler()]
    logging.basicConfig(handlers=handlers, level=logging.INFO, format="%(message)s")
    config, size = snakemake.config, snakemake.params.evaluations_per_job
    first = int(snakemake.params.part) * size
    names = ("graph", "proposals", "boundaries")
    main(
        ActivationSearch.from_params(
            snakemake.params.search, device=config["device"], compile=config["compile"]
        ),
        slice(first, first + size),
        {name: snakemake.input[name] for name in names if snakemake.input.get(name)},
        list(snakemake.input.sources),
        Path(snakemake.output.evaluations),
    )
