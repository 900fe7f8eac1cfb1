"""What runs again after a change: the table of the documentation, each row tried.

On the copy `finished` (conftest.py), whose scripts compute nothing but keep the imports
of the originals, so that Snakemake plans as ever.
"""

import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkouts import planned

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-to" / "reruns.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.slow


@contextmanager
def written(path, text):
    """The file with another text for a while; None deletes it."""
    original = path.read_bytes()
    try:
        if text is None:
            path.unlink()
        else:
            path.write_text(text, encoding="utf-8")
        yield
    finally:
        path.write_bytes(original)


def edited(path):
    """A remark more, at the end."""
    return lambda root: written(
        root / path, (root / path).read_text(encoding="utf-8") + "\n# edited\n"
    )


def replaced(path, old, new):
    def change(root):
        text = (root / path).read_text(encoding="utf-8")
        assert old in text
        return written(root / path, text.replace(old, new, 1))

    return change


def key(old, new):
    return replaced("config/config.yaml", old, new)


def deleted(pattern):
    return lambda root: written(next(root.glob(pattern)), None)


@contextmanager
def touched(root):
    """Written again with the same content, as a checkout of another branch does."""
    for folder in ("pipeline_src", "workflow"):
        for path in (root / folder).rglob("*.py"):
            path.touch()
    yield


@contextmanager
def untouched(root):
    yield


# The first column of the table -> how to change it, and the command's further words.
CHANGES = {
    "the kernels, `pipeline_src/quant/blockwise.py`": edited(
        "pipeline_src/quant/blockwise.py"
    ),
    "the training loop, `pipeline_src/training/trainer.py`": edited(
        "pipeline_src/training/trainer.py"
    ),
    "what is observed, `pipeline_src/training/observations.py`": edited(
        "pipeline_src/training/observations.py"
    ),
    "the fitted laws, `pipeline_src/laws/fits.py`": edited("pipeline_src/laws/fits.py"),
    "a table, `pipeline_src/report/tables/memory.py`": edited(
        "pipeline_src/report/tables/memory.py"
    ),
    "a figure, `pipeline_src/report/figures/positions.py`": edited(
        "pipeline_src/report/figures/positions.py"
    ),
    "a caption, `workflow/report/figure.rst`": edited("workflow/report/figure.rst"),
    "the fetching, `pipeline_src/graphs/fetching.py`": edited(
        "pipeline_src/graphs/fetching.py"
    ),
    "how the configuration is checked, `pipeline_src/configuration/checks.py`": (
        edited("pipeline_src/configuration/checks.py")
    ),
    "a script, `workflow/scripts/train_run.py`": edited(
        "workflow/scripts/train_run.py"
    ),
    "a file written again unchanged": touched,
    "one method's setting": key(
        "exact: {label: EXACT, policy: exact, bits: 2",
        "exact: {label: EXACT, policy: exact, bits: 4",
    ),
    "a method's `label`": key("label: EXACT,", "label: EXACT INT2,"),
    "more `seeds`": key("seeds: 5\n", "seeds: 7\n"),
    "`epochs` of a sweep": key("{epochs: 60, learning", "{epochs: 61, learning"),
    "`epochs` of a capture": key("[1, 20, 60]", "[1, 60]"),
    "`formats` of figures, one fewer": key("formats: [png, svg]", "formats: [svg]"),
    "`device` or `compile`": key(
        "device: auto\ncompile: auto", "device: cpu\ncompile: false"
    ),
    "`data_mirror`": key("data_mirror: null", "data_mirror: /data"),
    "the name, `run`": key("run: default", "run: other"),
    "a prepared graph, `resources/graphs/digits.npz`": edited(
        "resources/graphs/digits.npz"
    ),
    "a record that was deleted": deleted("results/default/runs/*.nc"),
    "a package's version": replaced(
        "environment.yml", "torch==2.13.0", "torch==2.11.0"
    ),
    "cores or the profile": (
        untouched,
        "--cores",
        "1",
        "--workflow-profile",
        "profiles/gpu",
    ),
    "the folder of the checkout": untouched,
}


def table():
    """First column -> rules, of the table on its page."""
    text = PAGE.partition("What runs again when something changes:")[2]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", text.partition("\n## ")[0], re.M)
    (every,) = re.findall(r"\*results\* stands for ([^.]+)\.", text)
    results = set(re.findall(r"`(\w+)`", every))
    named = {}
    for change, rules in rows[1:]:
        named[change] = set(re.findall(r"`(\w+)`", rules))
        named[change] |= results if "*results*" in rules else set()
    return named


def test_every_row_is_tried():
    assert set(table()) == set(CHANGES)


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_page_says_runs_again(finished, tmp_path, change):
    how, *words = (
        CHANGES[change] if type(CHANGES[change]) is tuple else [CHANGES[change]]
    )
    folder = finished
    if "folder" in change:
        folder = shutil.copytree(finished, tmp_path / "moved")
    with how(folder):
        again = planned(*words, cwd=folder)
    assert set(again) - {"all"} == table()[change]


SWEEP = 1 * 5  # models x methods of the default's only sweep
ALL = {"train_run": SWEEP}


@pytest.mark.parametrize(
    ("old", "new", "jobs"),
    [
        # A sixth and seventh seed: one new block for each cell of the sweep.
        ("seeds: 5\n", "seeds: 7\n", ALL),
        ("{epochs: 60, learning_rate: 0.01", "{epochs: 61, learning_rate: 0.01", ALL),
        (
            "exact: {label: EXACT, policy: exact, bits: 2",
            "exact: {label: EXACT, policy: exact, bits: 4",
            {"train_run": 1, "benchmark_training": 1},
        ),
        ("label: EXACT,", "label: EXACT INT2,", {}),
    ],
    ids=["seeds", "epochs", "setting", "label"],
)
def test_only_the_cells_that_a_key_changes_run_again(finished, old, new, jobs):
    with key(old, new)(finished):
        again = planned(cwd=finished)
    computing = {"train_run", "benchmark_training", "capture_activations"}
    assert {rule: n for rule, n in again.items() if rule in computing} == jobs
