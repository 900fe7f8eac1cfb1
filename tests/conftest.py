"""What all tests share: where kernels are kept, and which tests a machine can run."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkouts import copy_repository, run_at_once
from hypothesis import settings

# As in workflow/rules/common.smk: a kernel compiled once is not compiled again.
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "inductor"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE))

# A busy machine is no failure: hypothesis times single examples otherwise.
# The same examples in every run; `--hypothesis-profile searching` draws new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("searching", deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository without results, for plans alone."""
    folder = tmp_path_factory.mktemp("checkout")
    copy_repository(folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """Another copy, in which the default run has been made without computing."""
    folder = tmp_path_factory.mktemp("finished")
    copy_repository(folder)
    run_at_once(folder)
    return folder


# Folders whose single tests take longest: begun last, they would end alone.
LONG = ("quant", "workflow", "faults", "measuring", "gnn", "training")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, and skip what needs what is not here, with reasons.

    Several workers take files in this order (`--no-loadscope-reorder`).
    """
    items.sort(key=lambda item: _place(item.path.parent.name))
    for item in items:
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.get_closest_marker("slurm") and (obstacle := _obstacle_to_slurm()):
            item.add_marker(pytest.mark.skip(reason=obstacle))


def _place(folder: str) -> int:
    return LONG.index(folder) if folder in LONG else len(LONG)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _obstacle_to_slurm() -> str:
    """Why tests/cluster/one_node.sh cannot start a cluster here; empty if it can."""
    for daemon in ("munged", "slurmctld", "slurmd"):
        if not shutil.which(daemon, path=os.environ["PATH"] + ":/usr/sbin"):
            return f"no {daemon}; apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "only root can start a Slurm cluster"
    if Path("/etc/slurm/slurm.conf").exists():
        return "a Slurm is set up here already"
    return ""
