"""What the workflow costs before the first job; see also cluster/orchestration.py."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("configuration", ["paper", "benchmark"])
def test_a_plan_is_answered_at_once(configuration, tmp_path):
    """Within five seconds of one core: the limit a person waits without wondering."""
    before = cpu_seconds()
    subprocess.run(
        [
            Path(sys.executable).with_name("snakemake"),
            *("--dry-run", "--quiet", "--directory", tmp_path),
            *("--snakefile", ROOT / "Snakefile"),
            *("--configfile", ROOT / "config" / f"{configuration}.yaml"),
        ],
        check=True,
        capture_output=True,
    )
    assert cpu_seconds() - before < 5
