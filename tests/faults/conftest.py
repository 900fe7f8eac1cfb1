"""The undisturbed run that every disturbed one is compared with, and a small disk."""

import os
import subprocess

import pytest
from workplace import COLLECTED, checkout


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
