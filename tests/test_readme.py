"""The README shows what rules wrote, and its code runs."""

import re
from pathlib import Path

import pytest

from pipeline_src.experiment.publishing import (
    fill_marked_places,
    marked_places,
    publish,
)

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_those_of_the_published_files():
    places = list(marked_places(README))
    assert len(places) >= 4
    for path, shown in places:
        assert shown == (ROOT / path).read_text(encoding="utf-8"), path


def test_pictures_and_links_lead_to_files():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    accuracy, memory = re.findall(r"\[(.*?)\]", capsys.readouterr().out, re.DOTALL)
    assert all(float(value) > 0.9 for value in accuracy.split())
    assert len(set(memory.split())) == 1


def test_publishing_copies_files_and_fills_the_marks(tmp_path):
    run = tmp_path / "results" / "mine"
    (run / "tables").mkdir(parents=True)
    (run / "figures").mkdir()
    (run / "tables" / "accuracy.md").write_text("| 97.5 |\n")
    (run / "figures" / "curves.png").write_bytes(b"png")
    (run / "report.html").write_text("report")
    mark = "<!-- from results/published/mine/accuracy.md -->\n"
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{mark}| 1.0 |\n<!-- end -->\nafter\n")
    publish("mine", tmp_path)
    assert readme.read_text() == f"before\n{mark}| 97.5 |\n<!-- end -->\nafter\n"
    assert (tmp_path / "results/published/mine/curves.png").read_bytes() == b"png"
    assert fill_marked_places(readme.read_text(), tmp_path) == readme.read_text()


def test_publishing_a_run_that_was_not_made_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="make the run mine first"):
        publish("mine", tmp_path)
