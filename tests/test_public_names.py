"""The library as others install it: a wheel, its public names, and what it drags in."""

import ast
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from checkouts import copy_repository

import pipeline_src

ROOT = Path(__file__).resolve().parents[1]
# What the extras bring: the science must do without them. (Not psutil, which the tests
# ask for and PyTorch Geometric brings.)
EXTRAS = ("snakemake", "matplotlib", "plotnine", "jsonschema", "yaml", "netCDF4")
EXTRAS += ("pytest", "sphinx", "mypy", "hypothesis", "ogb")


def names_for_type_checkers():
    """Name -> module, of the imports that only a type checker follows."""
    tree = ast.parse((ROOT / "pipeline_src" / "__init__.py").read_text("utf-8"))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module != "typing":
            for alias in node.names:
                assert alias.asname == alias.name, "an alias says: meant to be seen"
                found[alias.name] = node.module
    return found


def test_type_checkers_and_python_find_the_same_names_in_the_same_places():
    homes = {
        name: f"pipeline_src.{home}" for name, home in pipeline_src._HOME_OF.items()
    }
    assert names_for_type_checkers() == homes


@pytest.mark.parametrize("name", pipeline_src.__all__)
def test_public_names_are_there_and_documented(name):
    value = getattr(pipeline_src, name)
    assert value.__module__ == f"pipeline_src.{pipeline_src._HOME_OF[name]}"
    assert value.__doc__, f"{name} says nothing of itself"


def test_unknown_names_are_missing_as_usual():
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        pipeline_src.compres  # noqa: B018


def test_importing_the_package_loads_nothing():
    code = "import sys, pipeline_src; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert not set(done.stdout.split()) & {"torch", "numpy", "pandas", *EXTRAS}


HIDE = f"""
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            return None  # as where it is not installed: some only ask for it
        return super().find_spec(name, path, target)

sys.meta_path = [Hiding if one is PathFinder else one for one in sys.meta_path]
"""


def test_a_wheel_is_imported_where_no_extra_is_installed(tmp_path):
    """All public names, and a training, from the wheel and not from this checkout."""
    source, target = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    copy_repository(source)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    wheels = ["--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, "wheel", *options, *wheels, str(source)], check=True)
    (wheel,) = tmp_path.glob("pipeline_src-*.whl")
    into = ["--target", str(target), "--no-index", "--no-deps", str(wheel)]
    subprocess.run([*pip, "install", *into], check=True)
    assert {path.name for path in target.iterdir()} == {
        "pipeline_src",
        f"pipeline_src-{wheel.name.split('-')[1]}.dist-info",
    }
    assert (target / "pipeline_src" / "py.typed").exists()
    code = (
        f"sys.path = [{str(target)!r}, *sys.path]\n"
        f"sys.path.append({sysconfig.get_path('purelib')!r})\n"
        "import pipeline_src as p\n"
        "names = [getattr(p, name) for name in p.__all__]\n"
        "training = p.TrainingSpec(2, 0.01, 0.0, 0.5, 'cross_entropy')\n"
        "model = p.ModelSpec('sage', 'sage', 2, 8, 0.5, True)\n"
        "method = p.MethodSpec('e', 'e', 'exact', bits=2, rows_per_block=8)\n"
        "spec = p.RunSpec('synthetic', model, method, training, (0,))\n"
        "graph = p.synthetic_graph(num_nodes=200, num_edges=900)\n"
        "print(p.__file__, len(p.train_run(spec, p.Job(graph)).test_accuracy))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", HIDE + code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(target / "pipeline_src" / "__init__.py"), "1"]
