"""A checkout in which the real workflow runs, is disturbed, and is started again."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import xarray as xr
from checkouts import BIN, copy_repository, planned

from pipeline_src.records.datasets import read_dataset
from pipeline_src.records.parts import read_part

RESULTS = Path("results/tiny")
TINY = """
run: tiny
device: cpu
compile: false
models:
  sage-2x8: {layer: sage, num_layers: 2, hidden: 8}
methods:
  fp32: {label: FP32, policy: full}
  lean2: {label: lean INT2, policy: lean, bits: 2, rows_per_block: 64}
sweeps:
  - graphs: [digits]
    models: [sage-2x8]
    methods: [fp32, lean2]
    seeds: 2
    training: {epochs: 3}
figures: {formats: [png]}
"""
FP32 = "results/tiny/runs/digits-sage-2x8-fp32-s0to1.nc"
LEAN = "results/tiny/runs/digits-sage-2x8-lean2-s0to1.nc"
COLLECTED = "results/tiny/runs.nc"
GRAPH = "resources/graphs/digits.npz"


class Workplace:
    """A checkout with a configuration, results and a state of Snakemake of its own."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __truediv__(self, path):
        return self.folder / path

    def begin(self, *arguments, **options):
        """Start in a process group of its own, as a shell does."""
        return subprocess.Popen(
            [BIN / "snakemake", "--cores", "2", *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            **options,
        )

    def run(self, *arguments, exit_status=0, **options):
        """What a start prints, to its end."""
        process = self.begin(*arguments, **options)
        text = process.communicate()[0]
        assert process.returncode == exit_status, text[-6000:]
        return text

    def planned(self, *arguments):
        """Rules that a start would run."""
        return set(planned(*arguments, cwd=self.folder))

    def files(self, *parts):
        """Everything among results and resources that is not a log."""
        return {
            path.relative_to(self.folder)
            for part in parts or ("results", "resources")
            for path in (self.folder / part).rglob("*")
            if path.is_file() and "logs" not in path.parts
        }

    def hidden(self):
        """Temporary files, half-written files and parts of unfinished records."""
        return {
            path
            for path in self.files()
            if any(part.startswith(".") for part in path.parts)
        }


def checkout(folder, config=TINY):
    """What a clone holds, with another configuration and without results."""
    folder.mkdir()
    copy_repository(folder)
    (folder / "config" / "config.yaml").write_text(config)
    return Workplace(folder)


def copy_of(workplace, folder, *but):
    """The same files with the same dates somewhere else, without some of them."""
    shutil.copytree(workplace.folder, folder)
    for path in but:
        (folder / path).unlink()
    return Workplace(folder)


def kill(process):
    """-9, the whole group: nobody gets a chance to tidy up."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


def wait_for(condition, process, seconds=60):
    """Poll until the condition holds; fail if the process ends or time runs out."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
    return found


def assert_same_collection(workplace, undisturbed):
    """The same runs collected, from the same files, and nothing left over."""
    found, expected = (
        without_times(read_dataset(place / COLLECTED))
        for place in (workplace, undisturbed)
    )
    xr.testing.assert_identical(found, expected)
    assert workplace.files() == undisturbed.files()


def lost_results(workplace, undisturbed, *records):
    """Seeds of these records that are missing or differ in anything but times."""
    return sum(
        not _same_seed(read_part(workplace / record), whole, seed)
        for record in records
        for whole in [read_dataset(undisturbed / record)]
        for seed in whole["seed"].values
    )


def _same_seed(found, expected, seed):
    """No record, a damaged one or one without the seed has lost it."""
    if found is None or seed not in found["seed"]:
        return False
    one, other = (without_times(record).sel(seed=seed) for record in (found, expected))
    return one.identical(other)


def without_times(dataset):
    """All of a dataset that configuration and seeds decide."""
    return dataset.drop_vars([name for name in dataset if name.endswith("epoch_time")])
