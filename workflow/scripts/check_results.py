"""Rule check_results: the collected dataset in, a list of checks out; or it fails."""

import logging
import sys
from pathlib import Path

from pipeline_src.collecting import checks
from pipeline_src.collecting.mixed_versions import mixed_versions
from pipeline_src.records import datasets
from pipeline_src.records.job_log import job_log
from pipeline_src.records.whole_files import write_whole


def main(runs_path: Path, report_path: Path) -> None:
    runs = datasets.read_dataset(runs_path)
    problems = checks.check_results(runs)
    if problems:
        text = "\n".join(problems)
        logging.error("%s impossible results:\n%s", len(problems), text)
        sys.exit(f"{runs_path} holds {len(problems)} impossible results:\n{text}")
    if mixed := mixed_versions(checks.provenances(runs)):
        # Not in the log alone: nothing else tells that packages have changed.
        print(f"Warning: different versions: {'; '.join(mixed)}", file=sys.stderr)
    write_whole(report_path, checks.describe_checks(runs) + "\n")


if __name__ == "__main__":
    with job_log(snakemake):
        main(Path(snakemake.input.runs), Path(snakemake.output.report))
