"""Rule check_model: a model that is a class in, a mark out."""

from pathlib import Path

from pipeline_src.records.job_log import job_log
from pipeline_src.records.whole_files import write_whole
from pipeline_src.training.class_models import check_class_model
from pipeline_src.training.spec import RunSpec


def main(spec: RunSpec, path: Path) -> None:
    number = check_class_model(spec)
    write_whole(path, f"{spec.model.layer} takes a step; {number} parameters\n")


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            RunSpec.from_params(
                snakemake.params.spec,
                device=snakemake.config["device"],
                compile=snakemake.config["compile"],
            ),
            Path(snakemake.output.checked),
        )
