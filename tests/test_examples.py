"""The scripts in examples/ run, learn, and differ from plain PyG by one call."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"
# Above chance by far after a few epochs: digits have ten classes, papers four.
LEARNED = {"gat": 0.6, "pna": 0.6, "hetero": 0.45, "links": 0.8}


@pytest.mark.parametrize("name", LEARNED)
def test_an_example_learns(name, capsys):
    script = runpy.run_path(str(FOLDER / f"{name}.py"))
    assert script["main"](epochs=15) > LEARNED[name]
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", LEARNED)
def test_one_call_is_what_an_example_adds_to_a_script(name):
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert text.count("\n    compress(") == 1


def test_every_example_is_in_the_list_and_is_run():
    scripts = {path.stem for path in FOLDER.glob("*.py")}
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}.py`" in listed for name in scripts)
