"""The workflow through a real Slurm: a cluster of one node, started for these tests.

Every call goes through profiles/slurm or profiles/slurm-gpu as users call it. Added are
only a short wait before the first look at a job, and squeue in place of sacct, because
the cluster keeps no accounts.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipeline_src.experiment.records import read_dataset

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
ONE_NODE = Path(__file__).with_name("one_node.sh")
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
ONLY_HERE = (
    "--slurm-status-command=squeue",
    "--slurm-init-seconds-before-status-checks=5",
)
PATIENCE = 900  # seconds until a workflow counts as hanging

SETTINGS = """
device: cpu
compile: false
models:
  gcn-2x8: {layer: gcn, num_layers: 2, hidden: 8}
  gcn-16x8: {layer: gcn, num_layers: 16, hidden: 8, batch_norm: false}  # diverges
methods:
  fp32: {label: FP32, policy: full}
  exact: {label: EXACT, policy: exact, bits: 2, projection_ratio: 2}
  block16-vm:
    label: G/R = 16 + VM
    policy: exact
    bits: 2
    projection_ratio: 2
    rows_per_block: 16
    boundaries: clipped_normal
  lean: {label: lean INT2, policy: lean, bits: 2, rows_per_block: 8}
  lean1: {label: lean INT1, policy: lean, bits: 1, rows_per_block: 8}
figures: {formats: [svg]}
"""
WHOLE = """
run: whole
sweeps:
  - graphs: [digits]
    models: [gcn-2x8]
    methods: [fp32, block16-vm]
    seeds: 2
    training: {epochs: 30}
measurements:
  - graphs: [digits]
    models: [gcn-2x8]
    methods: [fp32, exact]
    timed_methods: [fp32]
    warmup: 1
    repeats: 2
"""


def sweep(run, methods, seeds, seeds_per_job, epochs, model="gcn-2x8", step=0.01):
    return f"""
run: {run}
sweeps:
  - graphs: [digits]
    models: [{model}]
    methods: {methods}
    seeds: {seeds}
    seeds_per_job: {seeds_per_job}
    training: {{epochs: {epochs}, learning_rate: {step}}}
"""


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """The folder of a running cluster; stopped at the end, whatever happened."""
    with tempfile.TemporaryDirectory(prefix="one_node_") as outer:
        os.chmod(outer, 0o755)  # munge refuses a folder that is closed to others
        folder = Path(outer) / "cluster"
        subprocess.run([ONE_NODE, "up", folder, "--fake-gpu", *cgroup()], check=True)
        yield folder
        subprocess.run([ONE_NODE, "down", folder], check=True)


def cgroup():
    """Memory is limited where the machine lets us make a group of processes."""
    memory = Path("/sys/fs/cgroup/memory")
    return ["--cgroup"] if os.access(memory, os.W_OK) else []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A working folder with the graph, so that no test waits for it again."""
    folder = tmp_path_factory.mktemp("prepared")
    configure(folder, sweep("prepared", "[fp32]", 1, 1, 1))
    local(folder, "resources/graphs/digits.npz")
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return tmp_path


def configure(folder, text):
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config" / "config.yaml").write_text(SETTINGS + text)


def command(folder, profile, *arguments):
    profile = ROOT / "profiles" / profile
    start = [SNAKEMAKE, "--snakefile", ROOT / "Snakefile", "--directory", folder]
    return [*start, "--workflow-profile", profile, *arguments]


def local(folder, *arguments):
    done = subprocess.run(
        command(folder, "default", "--cores", "2", *arguments),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def through_slurm(folder, *arguments, profile="slurm", exit_status=0):
    """What the workflow prints; through Slurm, to the end."""
    with started(folder, *arguments, profile=profile) as head:
        text, _ = head.communicate(timeout=PATIENCE)
    assert head.returncode == exit_status, text[-4000:]
    return text


def started(folder, *arguments, profile="slurm"):
    """The head process, in a group of its own."""
    return subprocess.Popen(
        command(folder, profile, *ONLY_HERE, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def submitted(text):
    """Numbers of the Slurm jobs that a run submitted, in order."""
    return re.findall(r"has been submitted with SLURM jobid (\d+)", text)


def queue(form, *arguments):
    done = subprocess.run(
        ["squeue", "--noheader", "--states=all", f"--format={form}", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split("\n")[:-1]


def job(number, form):
    (line,) = queue(form, f"--jobs={number}")
    return line


def scontrol(number):
    """All that Slurm says of a job, by the names it uses."""
    done = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", number],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(re.findall(r"(\S+?)=(\S*)", done.stdout))


def records(folder):
    return {path.name: path for path in sorted(folder.glob("results/*/runs/*.nc"))}


def stamps(paths):
    """What tells whether a file was written again, even with the same bytes."""
    return {path.name: path.stat().st_mtime_ns for path in paths}


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)


def test_a_whole_run_ends_with_the_results_of_a_local_one(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        configure(folder, WHOLE)
    local(here, "--until=train_run")
    text = through_slurm(there)
    jobs = submitted(text)
    assert len(jobs) == 5, "graph, boundaries, two runs, and the clock"
    assert sorted(job(number, "%h") for number in jobs) == ["NO"] + 4 * ["OK"]
    expected, got = records(here), records(there)
    assert len(expected) == 2
    assert list(got) == list(expected)
    for name, path in expected.items():
        pair = [read_dataset(path), read_dataset(got[name])]
        one, other = (dataset.drop_vars("epoch_time") for dataset in pair)
        assert one.equals(other), name
    results = there / "results" / "whole"
    for table in ("accuracy", "memory", "training"):
        assert len((results / f"tables/{table}.csv").read_text().splitlines()) > 1
    assert len(list(results.glob("figures/*.svg"))) == 5
    assert "<html" in (results / "report.html").read_text(encoding="utf-8")


def test_fifty_short_runs_wait_in_the_queue_twice(folder):
    """Five seeds to a job, five jobs to a group: two submissions for fifty runs."""
    configure(
        folder,
        sweep("fifty", "[fp32, exact, block16-vm, lean, lean1]", 10, 5, 10),
    )
    text = through_slurm(
        folder,
        "--until=train_run",
        "--groups=train_run=trainings",
        "--group-components=trainings=5",
        "--resources=mem_mb=16000",
    )
    assert re.search(r"^train_run +10$", text, re.M)
    assert len(submitted(text)) == 1 + 2, "boundaries, and two groups"
    seeds = sum(read_dataset(path).sizes["seed"] for path in records(folder).values())
    assert seeds == 50


def test_one_diverging_run_leaves_the_others_and_is_named(folder):
    """On the node's GPU, as far as Slurm can tell: the profile asks for it."""
    good = sweep("part", "[exact, lean]", 1, 1, 10)
    bad = sweep("part", "[fp32]", 1, 1, 10, "gcn-16x8", 1000).partition("sweeps:\n")[2]
    configure(folder, good + bad)
    text = through_slurm(
        folder, "--until=train_run", "--retries=0", profile="slurm-gpu", exit_status=1
    )
    requests = {number: scontrol(number)["TresPerJob"] for number in submitted(text)}
    assert list(requests.values()) == 3 * ["gres:gpu:1"]
    assert set(records(folder)) == {
        "digits-gcn-2x8-exact-s0to0.nc",
        "digits-gcn-2x8-lean-s0to0.nc",
    }
    error = text.partition("Error in rule train_run:")[2]
    (logs,) = re.findall(r"^ +log: (.*) \(check log file", error, re.M)
    named = [folder / log for log in logs.split(", ")]
    assert named[0].parts[-2:] == ("train_run", "digits-gcn-16x8-fp32-s0to0.log")
    said = "".join(log.read_text() for log in named)
    assert "FloatingPointError: digits-gcn-16x8-fp32-s0to0 seed 0: " in said


def test_a_run_that_needs_more_memory_is_given_it(folder):
    """The profile tries again with a multiple of the first request."""
    if not cgroup():
        pytest.skip("no cgroup of memory is writable, so no job can be limited")
    configure(folder, sweep("memory", "[fp32]", 1, 1, 5))
    text = through_slurm(
        folder, "--until=train_run", "--set-resources=train_run:mem_mb=250 * attempt**2"
    )
    first, *more = submitted(text)
    assert job(first, "%T %m") in {"OUT_OF_MEMORY 250M", "FAILED 250M"}
    (log,) = folder.glob(f".snakemake/slurm_logs/rule_train_run/*/{first}.log")
    assert "oom-kill" in log.read_text(), "killed for its memory, and nothing else"
    assert [job(number, "%m") for number in more] in (["1000M"], ["1000M", "2250M"])
    assert job(more[-1], "%T") == "COMPLETED"
    assert len(records(folder)) == 1


def is_training(folder):
    """A first seed is finished and the job goes on."""
    return any(folder.glob("results/*/runs/.partial/*/seed0.nc"))


def test_a_killed_node_daemon_costs_nothing(folder, cluster):
    """Jobs live on without slurmd, and it finds them again."""
    configure(folder, sweep("node", "[fp32]", 3, 3, 300))
    with started(folder, "--until=train_run") as head:
        until(lambda: is_training(folder), "the first seed")
        os.kill(int((cluster / "slurmd.pid").read_text()), signal.SIGKILL)
        time.sleep(1)
        subprocess.run([ONE_NODE, "node", cluster], check=True)
        text, _ = head.communicate(timeout=PATIENCE)
    assert head.returncode == 0, text[-4000:]
    (number,) = submitted(text)
    assert job(number, "%T %r") == "COMPLETED None"
    assert len(records(folder)) == 1


def test_a_killed_head_loses_nothing(folder):
    """As profiles/README.md says: cancel, start again."""
    short = sweep("head", "[fp32, exact]", 1, 1, 5)
    long = sweep("head", "[lean]", 3, 3, 1000).partition("sweeps:\n")[2]
    configure(folder, short + long)
    with started(folder, "--until=train_run") as head:
        until(lambda: len(records(folder)) == 2 and is_training(folder), "a seed")
        os.killpg(head.pid, signal.SIGKILL)
        text, _ = head.communicate()
    (run,) = re.findall(r"SLURM run ID: (\S+)", text)
    assert queue("%j", "--states=running") == [run], "the job runs on by itself"
    subprocess.run(["scancel", "--name", run], check=True)
    until(lambda: not queue("%i", "--states=running,completing"), "the cancelled job")
    finished = stamps(records(folder).values())
    seeds = stamps(folder.glob("results/*/runs/.partial/*/*.nc"))
    assert seeds

    text = through_slurm(folder, "--until=train_run")
    assert len(submitted(text)) == 1
    assert len(records(folder)) == 3
    log = next(folder.glob("results/head/logs/train_run/*lean*.log")).read_text()
    assert log.count("resumed") == len(seeds)
    again = stamps(records(folder).values())
    assert {name: again[name] for name in finished} == finished
