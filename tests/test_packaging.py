"""One list of pins, whichever way the environment is made."""

import itertools
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def pip_block():
    (block,) = (entry["pip"] for entry in CONDA["dependencies"] if type(entry) is dict)
    return block


def test_conda_environment_repeats_the_pins():
    assert pip_block() == PROJECT["project"]["dependencies"]


def test_every_direct_dependency_has_an_exact_pin():
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    for pin in itertools.chain(project["dependencies"], *extras):
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9.]*", pin), pin


def test_torch_is_pinned_without_a_build():
    """A local build such as +cpu would refuse the build of a GPU machine."""
    assert "torch==2.13.0" in PROJECT["project"]["dependencies"]


def test_conda_and_pip_ask_for_the_same_python():
    (python,) = (
        entry for entry in CONDA["dependencies"] if str(entry).startswith("python")
    )
    assert python.split()[1] == PROJECT["project"]["requires-python"]


def test_conda_reads_the_environment_from_anywhere():
    """Snakemake copies it elsewhere, where a relative path would lead nowhere."""
    assert set(CONDA) == {"name", "channels", "dependencies"}
    assert CONDA["name"] == PROJECT["project"]["name"]
    assert CONDA["channels"] == ["conda-forge"], "one channel: no mixed binaries"
    plain = [entry for entry in CONDA["dependencies"] if type(entry) is str]
    assert [entry.split()[0] for entry in plain] == ["python", "pip", "cxx-compiler"]
    for entry in pip_block():
        assert not re.search(r"^-|[/\\@]|\.txt", entry), f"{entry} is no plain pin"


def test_every_rule_may_be_run_in_the_conda_environment():
    rules = [
        rule
        for path in sorted((ROOT / "workflow" / "rules").glob("*.smk"))
        for rule in re.split(r"^ *rule (?=\w+:)", path.read_text(), flags=re.M)[1:]
    ]
    assert len(rules) > 15
    for rule in rules:
        environment = re.search(r'conda:\s+"(.+?)"', rule)
        assert environment, rule.partition(":")[0]
        file = ROOT / "workflow" / "rules" / environment[1]
        assert file.resolve() == ROOT / "environment.yml"


def test_citation_names_the_three_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"] == "MIT"
    for reference in [citation, *citation["references"]]:
        assert {"type", "title", "authors"} <= set(reference)
    first_authors = [
        reference["authors"][0]["family-names"] for reference in citation["references"]
    ]
    assert first_authors == ["Liu", "Eliassen", "Feng"]


def test_markers_of_the_tests_are_declared():
    declared = PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    names = {marker.split(":")[0] for marker in declared}
    text = "".join(
        path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py")
    )
    used = set(re.findall(r"pytest\.mark\.(\w+)", text))
    assert used <= names | {
        "parametrize",
        "skip",
        "skipif",
        "usefixtures",
        "filterwarnings",
    }
