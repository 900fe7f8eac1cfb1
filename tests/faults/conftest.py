"""The undisturbed run that others are compared with, what was lost, a small disk.

    pytest tests/faults --publish-faults

writes results/published/faults.csv: how often each fault was done, and how many runs
were missing or different afterwards. Faults whose losses no test can count are not in
it.
"""

import os
import subprocess
from collections import Counter

import pandas as pd
import pytest
import yaml
from checkouts import ROOT
from workplace import COLLECTED, TINY, checkout

from pipeline_src.records.versions import package_versions

TABLE = ROOT / "results" / "published" / "faults.csv"
COUNTS = pytest.StashKey[dict[str, Counter]]()


def pytest_addoption(parser):
    parser.addoption("--publish-faults", action="store_true", help=f"write {TABLE}")


def pytest_configure(config):
    publish = config.getoption("--publish-faults", default=False)
    if publish and config.getoption("numprocesses", default=None):
        raise pytest.UsageError(
            "--publish-faults counts within one process; leave out --numprocesses"
        )


def pytest_sessionfinish(session):
    """Not known as an option where pytest is told of another folder."""
    if not session.config.getoption("--publish-faults", default=False):
        return
    counts = session.config.stash.get(COUNTS, {})
    rows = [{"fault": fault, **count} for fault, count in counts.items()]
    made_by = {
        "torch": package_versions()["torch"],
        "device": yaml.safe_load(TINY)["device"],
    }
    pd.DataFrame(rows).assign(**made_by).to_csv(TABLE, index=False)


@pytest.fixture
def count_fault(request):
    """Take down how often a fault was done and what it cost; refuse that it cost."""
    counts = request.config.stash.setdefault(COUNTS, {})

    def count(fault, *, trials, lost_results):
        assert trials, f"{fault} was not done"
        counts.setdefault(fault, Counter()).update(
            trials=trials, lost_results=lost_results
        )
        assert not lost_results, f"{fault} lost {lost_results} results"

    return count


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A finished run; tests copy it and leave it as it is."""
    workplace = checkout(tmp_path_factory.mktemp("undisturbed") / "checkout")
    workplace.run(COLLECTED)
    assert not workplace.hidden()
    return workplace


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of a given size at a folder; the function can do it again."""
    mounted = []

    def mount(folder, options):
        folder.mkdir(parents=True, exist_ok=True)
        again = "remount," if folder in mounted else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{again}{options}", "tmpfs", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a disk cannot be mounted: {done.stderr.strip()}")
        mounted.append(folder)

    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    yield mount
    for folder in set(mounted):
        subprocess.run(["umount", "--lazy", folder], check=True)
