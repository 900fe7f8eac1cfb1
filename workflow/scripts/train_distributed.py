"""Rule train_distributed: a graph in, the record of a training by several ranks out."""

from pathlib import Path

from pipeline_src.distributed.jobs.launch import launch
from pipeline_src.distributed.train import Plan
from pipeline_src.records.job_log import job_log
from pipeline_src.records.parts import parts_folder
from pipeline_src.training.spec import RunSpec, resume_key

if __name__ == "__main__":
    with job_log(snakemake, echo=True):
        spec = RunSpec.from_params(snakemake.params.spec, device="cpu")
        inputs = [snakemake.input.graph, *snakemake.input.sources]
        record = Path(snakemake.output.record)
        key = f"{resume_key(spec, inputs)}-{snakemake.params.partition}"
        with parts_folder(record, key) as checkpoints:
            plan = Plan(
                spec=spec,
                graph=Path(snakemake.input.graph),
                partition=snakemake.params.partition,
                wire_bits=int(snakemake.wildcards.wire),
                checkpoints=checkpoints,
                every=snakemake.params.every,
                record=record,
            )
            launch(plan, snakemake.resources.tasks, snakemake.resources.get("mpi", ""))
