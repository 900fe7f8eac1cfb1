"""What a user's machine may be like: names of folders, users, locales, starts.

Nothing is computed: the scripts of these copies write their outputs at once.
"""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig

import pytest
from checkouts import ROOT, compute_nothing, copy_repository, planned, snakemake

BOUNDARIES = "results/small/boundaries.nc"
AWKWARD = "$HOME `id` \\t %s größer 図 'an' \"a\" ;&|()#!*?[]~"
SMALL = """
run: small
models:
  sage: {layer: sage, num_layers: 2, hidden: 8}
methods:
  fp32: {label: 2 × größer, policy: full}
sweeps:
  - {graphs: [digits], models: [sage], methods: [fp32], seeds: 1, training: {epochs: 1}}
figures: {formats: [png]}
"""


def make_idle(folder):
    """A copy that computes nothing, and not much of it."""
    copy_repository(folder)
    compute_nothing(folder)
    (folder / "config" / "config.yaml").write_text(SMALL, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    """A copy that tests use together; what is made there stays."""
    return make_idle(tmp_path_factory.mktemp("idle"))


def with_environment(folder):
    """An idle copy with an environment of its own, as make makes it."""
    folder.mkdir()
    make_idle(folder)
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / file, folder)
    make_environment = ("-m", "venv", "--without-pip", folder / ".venv")
    subprocess.run([sys.executable, *make_environment], check=True)
    (packages,) = (folder / ".venv").glob("lib/*/site-packages")
    (packages / "these.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / ".venv" / ".installed").touch()
    return folder


def run(*command, cwd, **environment):
    """What a command prints, read by the encoding that it was told to use."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]} | environment,
        capture_output=True,
        encoding=environment.get("PYTHONIOENCODING", "utf-8"),
    )


@pytest.mark.slow
def test_a_checkout_may_have_almost_any_name(tmp_path):
    """With its environment inside: by make, and by name from a folder elsewhere."""
    folder = with_environment(tmp_path / AWKWARD)
    done = run("make", "results", "CORES=2", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "results/small/report.html").exists()
    elsewhere = tmp_path / f"not {AWKWARD}"
    elsewhere.mkdir()
    start = (folder / ".venv/bin/python", "-m", "snakemake", "--cores", "1")
    named = ("--snakefile", folder / "workflow" / "Snakefile", BOUNDARIES)
    done = run(*start, *named, cwd=elsewhere)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (elsewhere / BOUNDARIES).exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a{b}", "holds one of { }"),
        ("a{", "holds one of { }"),
        ("<a>", "< >"),
        (":", "':'"),
    ],
)
def test_a_name_that_cannot_work_is_refused_before_any_job(tmp_path, name, message):
    copy_repository(tmp_path / name)
    text = snakemake("--cores", "1", cwd=tmp_path / name, exit_status=1)
    assert message in text
    assert f"{str(tmp_path / name)!r}" in text
    assert "move the checkout" in text
    assert "Traceback" not in text
    assert "Job stats" not in text


def test_make_refuses_an_environment_that_it_cannot_name():
    done = run("make", "--dry-run", "results", "VENV=a b", cwd=ROOT)
    assert done.returncode
    assert "VENV is 'a b': expected a path without blanks" in done.stderr


def as_nobody():
    """Start of a command line whose user has no entry and no name; skip without."""
    start = ("unshare", "--user", "--map-user=54321", "--map-group=54321")
    if not shutil.which("unshare") or run(*start, "true", cwd="/").returncode:
        pytest.skip("a user without an entry cannot be had here (unshare --user)")
    return *start, "env", "--ignore-environment", f"PATH={os.environ['PATH']}"


@pytest.mark.parametrize("arguments", [("-n",), ("--cores", "1", BOUNDARIES)])
def test_a_user_without_a_name_can_run_it(idle, arguments):
    """As in a container: a home, but neither USER nor an entry for the uid."""
    start = (*as_nobody(), "HOME=/", sys.executable, "-m", "snakemake")
    done = run(*start, *arguments, cwd=idle)
    assert done.returncode == 0, done.stderr[-3000:]


def test_make_gives_a_home_to_whoever_has_none(tmp_path):
    folder = with_environment(tmp_path / "checkout")
    done = run(*as_nobody(), "make", "results", "CORES=1 --dry-run", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_run_ends_well_whatever_the_terminal_can_show(idle, encoding):
    """What has no place in the encoding is shown by its number, files are UTF-8."""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    start = (sys.executable, "-m", "snakemake", "--cores", "2", "--forceall")
    done = run(*start, cwd=idle, **locale)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "Logging error" not in done.stderr
    sign = {"ascii": r"\xb1 2", "latin-1": "± 2"}[encoding]
    assert f"made by the test: 1 {sign}" in done.stdout
    progress = (sys.executable, ROOT / "workflow/progress.py", "--once")
    done = run(*progress, cwd=idle, **locale)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


PROGRAM = [*(ROOT / "pipeline_src").rglob("*.py"), *(ROOT / "workflow").rglob("*.py")]
TEXT_CALLS = {
    *("open", "read_text", "write_text", "fdopen", "FileHandler"),
    *("TemporaryFile", "NamedTemporaryFile", "TextIOWrapper"),
}


def calls_without_encoding(path):
    """Lines that read or write text as the locale has it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        given = {word.arg for word in node.keywords}
        modes = [ast.unparse(arg) for arg in node.args]
        modes += [ast.unparse(w.value) for w in node.keywords if w.arg == "mode"]
        binary = any(mode.strip("'") in ("rb", "wb", "ab", "r+b") for mode in modes)
        of_module = ast.unparse(node.func) in ("os.open", "gzip.open", "members.open")
        run_as_text = {"text", "universal_newlines"} & given
        if "encoding" in given or binary or of_module:
            continue
        if name in TEXT_CALLS or run_as_text:
            yield node.lineno


@pytest.mark.parametrize("path", PROGRAM, ids=lambda path: path.stem)
def test_every_text_file_names_its_encoding(path):
    assert list(calls_without_encoding(path)) == []


@pytest.mark.parametrize(
    "call", ["open(p)", "p.read_text()", "p.write_text(t)", "run(c, text=True)"]
)
def test_a_missing_encoding_is_found(tmp_path, call):
    (tmp_path / "planted.py").write_text(call)
    assert list(calls_without_encoding(tmp_path / "planted.py")) == [1]


FEW_KEYS = "run: few\ndevice: cpu\n"


@pytest.mark.parametrize("how", ["snakefile", "inner", "directory"])
def test_the_default_configuration_is_found_from_everywhere(idle, tmp_path, how):
    """A configuration of a few keys extends the default one beside the workflow."""
    (tmp_path / "few.yaml").write_text(FEW_KEYS, encoding="utf-8")
    few = ("--configfile", str(tmp_path / "few.yaml"))
    start, cwd = {
        "snakefile": (("--snakefile", str(idle / "Snakefile")), tmp_path),
        "inner": (("--snakefile", str(idle / "workflow/Snakefile")), tmp_path),
        "directory": (("--directory", str(tmp_path)), idle),
    }[how]
    jobs = planned(*start, *few, cwd=cwd)
    assert jobs["train_run"] == 1


MODULE = """
module compressed:
    snakefile: "{folder}/workflow/Snakefile"
    {config}


use rule * from compressed as compressed_*


rule everything:
    default_target: True
    input:
        rules.compressed_all.input,
"""


def test_the_workflow_serves_as_a_module(idle, tmp_path):
    """Without `config:` by the default configuration, and by nothing else with it."""
    path = tmp_path / "Snakefile"
    path.write_text(MODULE.format(folder=idle, config=""), encoding="utf-8")
    snakemake("--cores", "2", BOUNDARIES, cwd=tmp_path)
    assert (tmp_path / BOUNDARIES).exists()
    assert planned(cwd=tmp_path)["compressed_train_run"] == 1
    path.write_text(MODULE.format(folder=idle, config="config: config"), "utf-8")
    (tmp_path / "few.yaml").write_text(FEW_KEYS, encoding="utf-8")
    few = ("-n", "--configfile", "few.yaml")
    text = snakemake(*few, cwd=tmp_path, exit_status=1)
    assert "methods: is missing and has no default" in text
    assert f"It was read from {tmp_path}/few.yaml." in text


def test_a_module_without_its_library_is_refused(tmp_path):
    """As snakedeploy makes them: a Snakefile alone, from an address."""
    repository = tmp_path / "repository"
    copy_repository(repository)
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-mx")):
        who = ("-c", "user.name=x", "-c", "user.email=x")
        subprocess.run(["git", *who, *command], cwd=repository, check=True)
    source = f'gitfile("{repository}", path="workflow/Snakefile", ref="HEAD")'
    text = MODULE.format(folder="", config="").replace('"/workflow/Snakefile"', source)
    (tmp_path / "Snakefile").write_text(text, encoding="utf-8")
    text = snakemake("-n", cwd=tmp_path, exit_status=1)
    assert "it needs the library beside it: clone the repository" in text
