"""Rule propose_round: what is known so far in, what is to be measured next out."""

from pathlib import Path

from pipeline_src.records.datasets import read_dataset, write_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.settings.rounds import propose_round


def main(
    start_path: str, previous_path: str | None, evaluations: list[str], path: Path
) -> None:
    proposals = propose_round(
        read_dataset(start_path),
        read_dataset(previous_path) if previous_path else None,
        [read_dataset(part) for part in evaluations],
    )
    write_dataset(proposals, path)


if __name__ == "__main__":
    with job_log(snakemake):
        main(
            snakemake.input.start,
            snakemake.input.get("previous"),
            list(snakemake.input.get("evaluations", [])),
            Path(snakemake.output.proposals),
        )
