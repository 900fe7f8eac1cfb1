"""The recipe of the container: rules that matter, since no image is built here."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from checkouts import FILES, PARTS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RECIPE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SECRET = re.compile(r"token|secret|passw|credential|api_?key|private", re.IGNORECASE)


def instructions(recipe):
    """(name, words) of each instruction, comments and continuations taken away."""
    lines = [line for line in recipe.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    for line in filter(str.strip, joined.splitlines()):
        name, _, words = line.strip().partition(" ")
        yield name.upper(), words.strip()


def copied(words):
    """What a COPY takes from the checkout."""
    return [word for word in shlex.split(words)[:-1] if not word.startswith("--")]


def faults(recipe):
    """One line for each rule that is broken."""
    found = list(instructions(recipe))
    of = {name: [words for n, words in found if n == name] for name, _ in found}
    for image in of["FROM"]:
        if not re.fullmatch(r"[\w./-]+:\d[\w.-]*(@sha256:\w{64})?", image):
            yield f"FROM: expected an image with a version, got {image}"
    for words in of.get("ADD", []):
        yield f"ADD: fetches and unpacks unasked; take COPY: {words}"
    for words in of.get("RUN", []):
        if re.search(r"\b(curl|wget|sudo)\b|git clone", words):
            yield f"RUN: fetches what nobody checked, or wants to be root: {words}"
        if "apt-get install" in words:
            needed = (
                "apt-get update",
                "--no-install-recommends",
                "rm -rf /var/lib/apt",
            )
            yield from (f"RUN: apt-get without {n}" for n in needed if n not in words)
        if "pip install" in words:
            if "--no-cache-dir" not in words:
                yield "RUN: pip without --no-cache-dir"
            if re.search(r"[a-z0-9]==|pip install(?!.*--requirement)", words):
                yield "RUN: pip takes its pins from environment.yml alone"
    for name in ("ENV", "ARG", "RUN", "COPY", "LABEL"):
        for words in of.get(name, []):
            if SECRET.search(words):
                yield f"{name}: looks like a secret: {words}"
    if not any(re.search(r"(^| )HOME=/tmp\b", words) for words in of.get("ENV", [])):
        yield "ENV: expected a HOME for any --user; Snakemake stops without one"
    names = [name for name, _ in found]
    if of.get("USER", ["root"])[-1].split(":")[0] in ("root", "0"):
        yield "USER: expected one that is not root"
    elif "USER" not in names[names.index("ENTRYPOINT") - 1 :][:1]:
        yield "USER: expected just before ENTRYPOINT, after all that root does"
    if not all(words.startswith("/") for words in of.get("WORKDIR", [""])):
        yield "WORKDIR: expected a folder from the root on"
    if json.loads(of["ENTRYPOINT"][-1]) != ["snakemake"]:
        yield "ENTRYPOINT: expected snakemake, without a shell in between"
    sources = [
        place
        for place, (name, words) in enumerate(found)
        if name == "COPY" and "pipeline_src" in copied(words)
    ]
    installed = [p for p, (_, words) in enumerate(found) if "pip install" in words]
    if not max(installed) < min(sources):
        yield "COPY: expected sources after packages, which change more seldom"


def test_the_recipe_breaks_no_rule():
    assert list(faults(RECIPE)) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("python:3.11-slim-bookworm", "python:latest", "FROM: expected an image"),
        ("python:3.11-slim-bookworm", "python", "FROM: expected an image"),
        ("COPY environment.yml ./", "ADD https://x.org/a.tar /", "ADD: fetches"),
        ("apt-get update", "curl https://x.org | sh", "RUN: fetches"),
        ("--no-install-recommends ", "", "RUN: apt-get without --no-install"),
        ("rm -rf /var/lib/apt", "true", "RUN: apt-get without rm"),
        ("--no-cache-dir ", "", "RUN: pip without --no-cache-dir"),
        ("--requirement /tmp/pins.txt", "torch==2.11.0", "RUN: pip takes its pins"),
        ("ENV XDG_CACHE_HOME", "ENV API_KEY=1 XDG_CACHE_HOME", "ENV: looks like a sec"),
        (" HOME=/tmp", "", "ENV: expected a HOME"),
        ("USER runner\n", "", "USER: expected one that"),
        ("USER runner\n", "USER 0\n", "USER: expected one that"),
        ("WORKDIR /pipeline", "WORKDIR pipeline", "WORKDIR: expected"),
        ('["snakemake"]', '["sh", "-c", "snakemake"]', "ENTRYPOINT: expected"),
        ("WORKDIR", "COPY pipeline_src ./\nWORKDIR", "COPY: expected sources after"),
    ],
)
def test_each_rule_can_be_broken(old, new, fault):
    """A linter that finds nothing may be blind."""
    assert old in RECIPE
    found = list(faults(RECIPE.replace(old, new, 1)))
    assert any(line.startswith(fault) for line in found), found


def test_the_pins_are_those_of_the_environment():
    """The command of the recipe itself, run here."""
    (command,) = re.findall(r"RUN (sed .*?) >", RECIPE)
    printed = subprocess.run(
        shlex.split(command), cwd=ROOT, capture_output=True, text=True
    )
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (block,) = (entry["pip"] for entry in conda["dependencies"] if type(entry) is dict)
    assert printed.stdout.splitlines() == block


def test_the_interpreter_is_one_that_the_project_admits():
    (version,) = re.findall(r"^FROM python:(\d+\.\d+)", RECIPE, re.M)
    admitted = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert tuple(map(int, version.split("."))) >= tuple(map(int, admitted.split(".")))


def test_what_a_run_needs_is_copied_and_tracked_and_not_ignored():
    taken = {
        path
        for name, words in instructions(RECIPE)
        for path in (copied(words) if name == "COPY" else [])
    }
    assert {*PARTS, *FILES} <= taken
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[1] == "*", "everything else stays out, secrets and results too"
    assert {line[1:] for line in ignored if line.startswith("!")} == taken
    listed = subprocess.run(
        ["git", "ls-files", "--", *taken], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("no git checkout")
    tracked = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert tracked == taken
