"""The library files behind a script, on a small library written by the test."""

import pytest

from pipeline_src.records.sources import imported_sources


@pytest.fixture
def tree(tmp_path):
    """A library of four modules and a script; `alone` is imported by nobody."""
    files = {
        "pipeline_src/__init__.py": "",
        "pipeline_src/room/__init__.py": "",
        "pipeline_src/room/first.py": "from pipeline_src.room.second import name\n",
        "pipeline_src/room/second.py": "import pipeline_src.room.third\n",
        "pipeline_src/room/third.py": "from pipeline_src.room import first\n",
        "pipeline_src/room/alone.py": "",
        "script.py": "def main():\n    from pipeline_src.room import first\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_imports_are_followed_to_their_end_and_through_cycles(tree):
    found = imported_sources(tree / "script.py", tree)
    assert [path.name for path in found] == ["first.py", "second.py", "third.py"]


def test_a_script_without_our_imports_has_no_sources(tree):
    (tree / "script.py").write_text("import numpy\nimport pipeline_srcs.x\n")
    assert imported_sources(tree / "script.py", tree) == []


def test_imports_are_read_and_not_executed(tree):
    (tree / "script.py").write_text(
        "raise SystemExit\nimport pipeline_src.room.alone as alone\n"
    )
    assert [p.name for p in imported_sources(tree / "script.py", tree)] == ["alone.py"]


def test_a_missing_script_is_an_error(tree):
    with pytest.raises(FileNotFoundError, match=r"absent\.py"):
        imported_sources(tree / "absent.py", tree)
