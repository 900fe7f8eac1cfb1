"""What others read before the code: workflows of GitHub, the catalog's form, papers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline_src.graphs.raw_sources import RAW_SOURCES

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):(?!=)", MAKEFILE, re.M))
PINNED = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


def jobs(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()


def commands(path):
    """What the steps run, each matrix spelled out."""
    for job in jobs(path):
        targets = job.get("strategy", {}).get("matrix", {}).get("target", [""])
        for step in job["steps"]:
            for target in targets:
                yield step.get("run", "").replace("${{ matrix.target }}", target)


def refused(path):
    """What the published schema of GitHub's workflows has against a file."""
    pytest.importorskip("check_jsonschema", reason="comes with the extra dev")
    command = ("check_jsonschema", "--builtin-schema", "vendor.github-workflows")
    done = subprocess.run(
        [sys.executable, "-m", *command, path], capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout if done.returncode else ""


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_follow_the_published_schema(path):
    assert not refused(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("runs-on:", "runs_on:"),
        ("- run:", "- runs:"),
        ("contents: read", "contents: 7"),
    ],
)
def test_a_wrong_workflow_is_noticed(tmp_path, old, new):
    text = WORKFLOWS[0].read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "wrong.yml").write_text(text.replace(old, new), encoding="utf-8")
    assert "validation errors" in refused(tmp_path / "wrong.yml")


def test_workflows_call_what_a_developer_calls():
    called = {
        target
        for path in WORKFLOWS
        for command in commands(path)
        for target in re.findall(r"^make ([a-z-]+)$", command, re.M)
    }
    assert called == {"lint", "docs", "test-all", "gpu-proof", "results"}
    assert called <= TARGETS


def recipe(target):
    """The commands of a target, its variables filled in."""
    command = ["make", "--no-print-directory", "--dry-run"]
    command += ["--assume-old", ".venv/.installed", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def test_slow_tests_are_left_out_by_one_command_and_by_no_check():
    assert recipe("test") == recipe("test-all") + ' -m "not slow"'
    assert "slow" not in recipe("test-all")
    checks = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^make (test\S*)", checks, re.M) == ["test-all"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_take_fixed_actions_and_may_only_read(path):
    text = path.read_text(encoding="utf-8")
    used = re.findall(r"uses: (.+)", text)
    assert used
    for action in used:
        assert PINNED.fullmatch(action), f"{action}: expected owner/name@hash # vX.Y.Z"
    content = yaml.safe_load(text)
    assert content["permissions"] == {"contents": "read"}
    assert 'python-version: "3.11"' in text
    assert "g++" in text
    for job in jobs(path):
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 60
        assert not job["runs-on"].endswith("latest")


def test_the_catalog_of_workflows_gets_what_it_asks_for():
    """https://snakemake.github.io/snakemake-workflow-catalog: standardised usage."""
    for file in ("workflow/Snakefile", "config/README.md", "README.md", "LICENSE"):
        assert (ROOT / file).is_file(), file
    text = (ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8")
    usage = yaml.safe_load(text)
    assert set(usage) == {"usage"}
    asked = {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(usage["usage"]) == asked
    assert set(usage["usage"]["mandatory-flags"]) == {"desc", "flags"}
    deployment = usage["usage"]["software-stack-deployment"]
    assert deployment == {
        "conda": True,  # tests/test_packaging.py: of every rule
        "apptainer": False,
        "apptainer+conda": False,
    }
    assert usage["usage"]["report"] is True  # tests/workflow/test_snakemake_report.py


def test_files_without_a_checksum_are_named():
    text = " ".join((ROOT / "SECURITY.md").read_text(encoding="utf-8").split())
    unchecked = {
        name
        for name, source in RAW_SOURCES.items()
        if any(file.checksum is None for file in source.files)
    }
    assert unchecked == {"Flickr", "Reddit", "ogbn_arxiv"}
    assert "those of Flickr, Reddit and the features of ogbn-arxiv" in text


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_papers_are_short_and_name_files_that_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(text.split()) <= 500
    rooms = r"pipeline_src|workflow|config|tests|results|\.github|\.ci"
    for path in re.findall(rf"`((?:{rooms})/[^`*\s]*)`", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"`?make ([a-z -]+)`?$", text, re.M):
        assert set(target.split()) <= TARGETS, target
