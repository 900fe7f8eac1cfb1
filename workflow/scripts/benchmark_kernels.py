"""Rule benchmark_kernels: sizes in, the seconds of the block-wise kernels out."""

from pathlib import Path

import torch

from pipeline_src.measuring.kernels import benchmark_kernels
from pipeline_src.records.datasets import write_dataset
from pipeline_src.records.job_log import job_log
from pipeline_src.training.spec import source_digest


def main(
    plan: dict,
    device: str,
    compile: str,
    sources: list[str],
    threads: int,
    kernels_path: Path,
) -> None:
    torch.set_num_threads(threads)
    record = benchmark_kernels(
        **plan,
        device=device,
        compile=compile,
        threads=threads,
        source_digest=source_digest(sources),
    )
    write_dataset(record, kernels_path)


if __name__ == "__main__":
    keys = ("rows", "width", "bits", "block_sizes", "warmup", "repeats")
    with job_log(snakemake, echo=True):
        main(
            {key: snakemake.params[key] for key in keys},
            snakemake.config["device"],
            snakemake.config["compile"],
            list(snakemake.input.sources),
            snakemake.threads,
            Path(snakemake.output.kernels),
        )
