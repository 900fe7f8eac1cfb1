"""The workflow through a real Slurm: a cluster of one node, started for these tests.

Every call goes through profiles/slurm or profiles/slurm-gpu as users call it. Added are
only a short wait before the first look at a job, and squeue in place of sacct, because
the cluster keeps no accounts. The configuration is the default one under an overlay:
trainings are fewer and shorter, and what is measured on synthetic graphs of published
sizes is measured on the digits. Most tests begin with a copy of one undisturbed local
run that lacks a record; Slurm has to make it, equal to the one that was there.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import xarray as xr
import yaml

from pipeline_src.records.datasets import read_dataset

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
ONE_NODE = Path(__file__).with_name("one_node.sh")
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
ONLY_HERE = (
    "--slurm-status-command=squeue",
    "--slurm-init-seconds-before-status-checks=1",
)
PATIENCE = 600  # seconds until a workflow counts as hanging

DEFAULT = ROOT / "config" / "config.yaml"
SMALL = """
run: small
device: cpu
measurements:
  - graphs: [digits]
    models: [gcn-2x64]
    methods: [fp32, exact]
    timed_methods: [fp32]
    warmup: 1
    repeats: 2
captures:
  - graphs: [digits]
    models: [sage-2x64]
    method: block64
    epochs: [1, 2]
    training: {learning_rate: 0.01, gradient_clip: 0.5}
figures: {formats: [svg]}
sweeps:
  - graphs: [digits]
    models: [gcn-2x64]
    methods: [fp32]
    seeds: 1
    training: {epochs: 20, learning_rate: 0.01}
  - graphs: [digits]
    models: [gcn-2x64]
    methods: [block64-vm]
    seeds: 3
    seeds_per_job: 3
    training: {epochs: 20, learning_rate: 0.01}
"""
ONE_SEED = Path("results/small/runs/digits-gcn-2x64-fp32-s0to0.nc")
THREE_SEEDS = Path("results/small/runs/digits-gcn-2x64-block64-vm-s0to2.nc")
FIFTY = """
run: fifty
device: cpu
sweeps:
  - graphs: [digits]
    models: [gcn-2x64]
    methods: [fp32, exact, block2, block8, block64]
    seeds: 10
    seeds_per_job: 10
    training: {epochs: 2}
"""
DEEP = """
  - graphs: [digits]
    models: [deep]
    methods: [fp32]
    seeds: 1
    training: {epochs: 5, learning_rate: RATE}
models:
  deep: {layer: gcn, num_layers: 16, hidden: 8, batch_norm: false}
"""
DIVERGING = Path("results/small/runs/digits-deep-fp32-s0to0.nc")


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
def undisturbed(tmp_path_factory):
    """A local run up to its records; tests copy it and leave it as it is."""
    folder = tmp_path_factory.mktemp("undisturbed")
    configure(folder, SMALL)
    text = snakemake(folder, "--cores=2", "--until", "train_run", "fit_distributions")
    assert stats(text)["train_run"] == 2
    return folder


@pytest.fixture
def folder(undisturbed, tmp_path):
    """A copy; as many folders deep, because sources have relative names."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    yield tmp_path
    subprocess.run(["scancel", "--quiet", "--user=root"], check=True)


def configure(folder, overlay):
    (folder / "config").mkdir(exist_ok=True)
    shutil.copy(DEFAULT, folder / "config")
    (folder / "overlay.yaml").write_text(overlay)


def command(folder, *arguments):
    start = [SNAKEMAKE, "--snakefile", ROOT / "Snakefile", "--directory", folder]
    return [*start, "--configfile", folder / "overlay.yaml", *arguments]


def snakemake(folder, *arguments):
    """What a local start prints."""
    done = subprocess.run(
        command(folder, *arguments), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@contextlib.contextmanager
def started(folder, *arguments, profile="slurm"):
    """The head process, in a group of its own; it does not outlive the block."""
    profile = ROOT / "profiles" / profile
    with (folder / "head.txt").open("w") as output:
        head = subprocess.Popen(
            command(folder, "--workflow-profile", profile, *ONLY_HERE, *arguments),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield head
    finally:
        if head.poll() is None:
            kill(head)


def kill(head):
    """-9, the whole group: nobody gets a chance to tidy up."""
    os.killpg(head.pid, signal.SIGKILL)
    head.wait()


def printed(folder):
    return (folder / "head.txt").read_text()


def ended(head, folder, exit_status=0):
    """What the head process prints, to its end."""
    head.wait(timeout=PATIENCE)
    text = printed(folder)
    assert head.returncode == exit_status, text[-4000:]
    return text


def through_slurm(folder, *arguments, profile="slurm", exit_status=0):
    with started(folder, *arguments, profile=profile) as head:
        return ended(head, folder, exit_status)


def submitted(text):
    """Numbers of the Slurm jobs that a run submitted, in order."""
    return re.findall(r"has been submitted with SLURM jobid (\d+)", text)


def stats(text):
    """How many jobs of each rule a start has before it."""
    table = text.partition("Job stats:")[2].partition("\ntotal")[0]
    return {
        rule: int(jobs) for rule, jobs in re.findall(r"^(\w+) +(\d+)$", table, re.M)
    }


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


def states(text):
    """What has become of the Slurm jobs that a run submitted."""
    return [job(number, "%T") for number in submitted(text)]


def scontrol(number):
    """All that Slurm says of a job, by the names it uses."""
    done = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", number],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(re.findall(r"(\S+?)=(\S*)", done.stdout))


def datasets(folder):
    """All of them, parts of unfinished records too."""
    paths = (folder / "results" / "small").rglob("*.nc")
    return {path.relative_to(folder): path for path in sorted(paths)}


def assert_same(path, other):
    """Equal in all that configuration and seeds decide: the clock is left out."""
    pair = [
        read_dataset(one).drop_vars("epoch_time", errors="ignore")
        for one in (path, other)
    ]
    xr.testing.assert_identical(*pair)


def assert_undisturbed(folder, undisturbed):
    """The same datasets, and nothing left over."""
    expected, got = datasets(undisturbed), datasets(folder)
    assert list(got) == list(expected)
    for name, path in expected.items():
        assert_same(got[name], path)


def stamps(paths):
    """What tells whether a file was written again, even with the same bytes."""
    return {path.name: path.stat().st_mtime_ns for path in paths}


def until(condition, what, pause=0.2):
    """Poll until the condition holds, and return what it holds."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(pause)
    return found


def training_process(record):
    """The process that trains a record, wherever Slurm started it; or None."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "train_run.py" not in "".join(process.cmdline()[1:2]):
                continue
            callers = [" ".join(parent.cmdline()) for parent in process.parents()]
            if any(f"cell={record.stem}" in caller for caller in callers):
                return process
    return None


def parts(folder, record):
    """Finished seeds of an unfinished record."""
    return list((folder / record.parent / ".partial" / record.stem).rglob("*.nc"))


@contextlib.contextmanager
def held(folder, record):
    """A training stands still in the block, between its first seed and its last."""
    training = until(lambda: training_process(record), "the training")
    until(lambda: parts(folder, record), "its first seed", pause=0.005)
    training.suspend()
    assert not (folder / record).exists()
    yield training
    with contextlib.suppress(psutil.NoSuchProcess):
        training.resume()


def test_the_whole_default_run_ends_with_the_results_of_a_local_one(
    undisturbed, tmp_path
):
    """With every kind of rule that the default configuration has."""
    configure(tmp_path, SMALL)
    default = snakemake(tmp_path, "--dry-run", "--configfile", DEFAULT)
    text = through_slurm(tmp_path)
    assert stats(text).keys() == stats(default).keys()
    jobs = submitted(text)
    assert len(jobs) == 7, "graph, boundaries, two runs, capture, fit, and the clock"
    assert sorted(job(number, "%h") for number in jobs) == ["NO"] + 6 * ["OK"]
    got = datasets(tmp_path)
    for name, path in datasets(undisturbed).items():
        assert_same(got[name], path)
    results = tmp_path / "results" / "small"
    for table in ("accuracy", "memory", "training", "distributions"):
        assert len((results / f"tables/{table}.csv").read_text().splitlines()) > 1
    assert len(list(results.glob("figures/*.svg"))) == stats(text)["plot_figure"]
    assert "<html" in (results / "report.html").read_text(encoding="utf-8")


def test_fifty_short_runs_wait_in_the_queue_twice(folder):
    """Ten seeds to a job, three jobs to a group: two submissions for fifty runs."""
    configure(folder, FIFTY)
    text = through_slurm(
        folder,
        "--until=train_run",
        "--groups=train_run=trainings",
        "--group-components=trainings=3",
        "--resources=mem_mb=16000",
    )
    assert stats(text)["train_run"] == 5
    assert len(submitted(text)) == 2
    records = (folder / "results" / "fifty" / "runs").glob("*.nc")
    assert sum(read_dataset(path).sizes["seed"] for path in records) == 50


def test_one_diverging_run_is_named_and_leaves_the_others(undisturbed, folder):
    """On the node's GPU, as far as Slurm can tell; one at a time, the bad one first."""
    (folder / ONE_SEED).unlink()
    configure(folder, SMALL + DEEP.replace("RATE", "1000"))
    text = through_slurm(
        folder,
        *("--until=train_run", "--jobs=1", f"--prioritize={DIVERGING}", "--retries=0"),
        profile="slurm-gpu",
        exit_status=1,
    )
    told = [scontrol(number) for number in submitted(text)]
    assert [one["JobState"] for one in told] == ["FAILED", "COMPLETED"]
    assert [one["TresPerJob"] for one in told] == 2 * ["gres:gpu:1"]
    name = DIVERGING.stem
    message = (
        rf"FAILED train_run {name}\n.*{name} seed 0: .*"
        r" after epoch \d\. Lower learning_rate or set gradient_clip\."
    )
    log = f"results/small/logs/train_run/{name}.log"
    assert f"log: {log}" in text
    assert re.search(message, text)
    assert re.search(message, (folder / log).read_text())
    assert_undisturbed(folder, undisturbed)

    configure(folder, SMALL + DEEP.replace("RATE", "0.01"))
    planned = stats(snakemake(folder, "--dry-run", "--until=train_run"))
    assert planned == {"train_run": 1}, "the one that failed"


def test_a_run_that_needs_more_memory_is_given_it(undisturbed, folder):
    """As often and as much more as the profile says, from a small first request."""
    if not cgroup():
        pytest.skip("no cgroup of memory is writable, so no job can be limited")
    (folder / ONE_SEED).unlink()
    profile = yaml.safe_load((ROOT / "profiles/slurm/profile.yaml").read_text())
    request = str(profile["set-resources"]["train_run"]["mem_mb"])
    small = f"--set-resources=train_run:mem_mb={request.replace('16000', '350')}"
    text = through_slurm(folder, "--until=train_run", small)
    first, *more = submitted(text)
    assert job(first, "%T %m") in {"OUT_OF_MEMORY 350M", "FAILED 350M"}
    (log,) = folder.glob(f".snakemake/slurm_logs/rule_train_run/*/{first}.log")
    assert "oom-kill" in log.read_text(), "killed for its memory, and nothing else"
    assert [job(number, "%m") for number in more] in (["700M"], ["700M", "1050M"])
    assert job(more[-1], "%T") == "COMPLETED"
    assert_undisturbed(folder, undisturbed)


def test_a_killed_node_daemon_costs_nothing(undisturbed, folder, cluster):
    """Jobs live on without slurmd, and it finds them again."""
    (folder / THREE_SEEDS).unlink()
    with started(folder, "--until=train_run") as head:
        with held(folder, THREE_SEEDS):
            os.kill(int((cluster / "slurmd.pid").read_text()), signal.SIGKILL)
            subprocess.run([ONE_NODE, "node", cluster], check=True)
        text = ended(head, folder)
    (number,) = submitted(text)
    assert job(number, "%T %r") == "COMPLETED None"
    assert_undisturbed(folder, undisturbed)


def test_a_killed_job_goes_on_after_its_last_finished_seed(undisturbed, folder):
    """The profile submits it again by itself."""
    (folder / THREE_SEEDS).unlink()
    with started(folder, "--until=train_run") as head:
        with held(folder, THREE_SEEDS) as training:
            seeds = stamps(parts(folder, THREE_SEEDS))
            training.kill()
        text = ended(head, folder)
    assert states(text) == ["FAILED", "COMPLETED"]
    log = folder / f"results/small/logs/train_run/{THREE_SEEDS.stem}.log"
    assert log.read_text().count(": resumed") == len(seeds)
    assert_undisturbed(folder, undisturbed)


def test_a_killed_head_loses_nothing(undisturbed, folder):
    """As docs/how-to/cluster.md says: cancel, start again."""
    (folder / ONE_SEED).unlink()
    (folder / THREE_SEEDS).unlink()
    with started(folder, "--until=train_run") as head, held(folder, THREE_SEEDS):
        until(lambda: states(printed(folder)).count("COMPLETED"), "the other run")
        kill(head)
        assert sorted(states(printed(folder))) == ["COMPLETED", "RUNNING"]
        (run,) = re.findall(r"SLURM run ID: (\S+)", printed(folder))
        subprocess.run(["scancel", "--name", run], check=True)
        until(lambda: not queue("%i", "--states=running,completing"), "its end")
    finished = stamps([folder / ONE_SEED])
    seeds = stamps(parts(folder, THREE_SEEDS))
    assert seeds

    text = through_slurm(folder, "--until=train_run")
    assert len(submitted(text)) == 1
    log = folder / f"results/small/logs/train_run/{THREE_SEEDS.stem}.log"
    assert log.read_text().count(": resumed") == len(seeds)
    assert stamps([folder / ONE_SEED]) == finished
    assert_undisturbed(folder, undisturbed)
