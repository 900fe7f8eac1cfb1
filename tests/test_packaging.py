"""One list of pins, whichever way the environment is made."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)
SELF = PROJECT["project"]["name"]


def pip_block():
    (block,) = (entry["pip"] for entry in CONDA["dependencies"] if type(entry) is dict)
    return block


def needs(*extras):
    """Names and least versions that the project and its extras ask for."""
    project = PROJECT["project"]
    asked = list(project["dependencies"])
    for extra in extras:
        asked += project["optional-dependencies"][extra]
    form = r"([a-z0-9-]+)(\[\w+\])?(>=([0-9.]+))?"
    named = [re.fullmatch(form, one) for one in asked]
    assert all(named), asked
    return {match[1]: match[4] for match in named if match and match[1] != SELF}


EXTRAS = tuple(PROJECT["project"]["optional-dependencies"])


def test_the_library_asks_for_ranges_and_constraints_pin_each_of_them():
    """A pin of ours must not stand in the way of a user's torch."""
    asked = needs(*EXTRAS)
    assert set(asked) == set(PINS), "each direct dependency, and nothing else"
    for name, least in asked.items():
        assert least, f"{name}: expected name>=version"
        assert version(least) <= version(PINS[name]), f"{name}: pinned below its range"


def version(text):
    return tuple(int(part) for part in text.split("."))


def test_constraints_are_exact_and_in_order():
    assert list(PINS) == sorted(PINS)
    for name, pin in PINS.items():
        assert re.fullmatch(r"[a-z0-9-]+", name)
        assert re.fullmatch(r"[0-9][0-9.]*", pin), f"{name}: no build, as +cpu"


def test_conda_environment_repeats_the_pins_of_the_workflow():
    names = sorted(needs("workflow", "figures"))
    assert pip_block() == [f"{name}=={PINS[name]}" for name in names]


def test_the_science_needs_no_workflow_and_no_plots():
    assert not set(needs()) & (set(needs("workflow", "figures")) - set(needs()))
    for name in ("snakemake", "matplotlib", "plotnine", "jinja2", "pytest", "sphinx"):
        assert name not in needs()


def test_torch_has_a_lower_bound_only():
    assert needs()["torch"] == "2.11"
    assert PINS["torch"] == "2.13.0"


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
