"""Rule check_results: the collected dataset in, a list of checks out; or it fails."""

import logging
import sys
from pathlib import Path

from pipeline_src.experiment import checks, records


def main(runs_path: Path, report_path: Path) -> None:
    runs = records.read_dataset(runs_path)
    problems = checks.check_results(runs)
    if problems:
        text = "\n".join(problems)
        logging.error("%s impossible results:\n%s", len(problems), text)
        sys.exit(f"{runs_path} holds {len(problems)} impossible results:\n{text}")
    report_path.write_text(checks.describe_checks(runs) + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(filename=snakemake.log[0], level=logging.INFO)
    main(Path(snakemake.input.runs), Path(snakemake.output.report))
