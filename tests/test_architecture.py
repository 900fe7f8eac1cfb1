"""Who may import whom: the floors of the house, and where a room keeps to itself."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "pipeline_src"
SCRIPTS = ROOT / "workflow" / "scripts"

STANDARD = set(sys.stdlib_module_names)
NUMBERS = {"numpy", "scipy"}
TABLES = NUMBERS | {"pandas", "xarray"}
LIGHT = {"yaml", "jsonschema"}
PICTURES = TABLES | {"matplotlib", "plotnine"}

# The packages, each with its charter, by floors. A module may import its own package
# and those on floors further up in this list; neighbours on a floor know nothing of
# each other. The charter is the first line of the package's docstring as well.
FLOORS: list[dict[str, str]] = [
    {
        "records": "What a run leaves behind, whole or not at all, "
        "and with which code and where.",
        "quant": "Numbers: tensors in, tensors out; no graphs, no files, no clock.",
    },
    {
        "graphs": "Graphs: fetched, read, checked, split, made.",
        "laws": "Which law positions in a block follow, and the boundaries it gives.",
        "search": "The least memory for an accuracy, or the reverse; "
        "knows no networks.",
    },
    {
        "gnn": "Networks and operations that keep compressed activations for backward.",
        "compression": "Any model keeps codes: rules for its operations, "
        "and what memory they take.",
        "loading": "Mini-batches of a graph: sampled, normalised, prefetched.",
    },
    {"training": "One training: a specification and a graph in, a record out."},
    {"distributed": "One graph's training, spread over processes."},
    {
        "measuring": "Time, memory and gradient error, side by side.",
        "collecting": "Many records become one dataset; the impossible is refused.",
    },
    {"features": "Which bits to store node features in."},
    {
        "settings": "Which settings of activation compression to choose.",
        "report": "Datasets become tables, figures and one page.",
    },
    {
        "configuration": "A configuration is checked before anything runs, "
        "and becomes plans."
    },
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}

# What may be imported beside the standard library. The longest matching name decides.
PACKAGES: dict[str, set[str]] = {
    "records": TABLES | {"torch", "netCDF4", "psutil"},
    "records.claims": set(),
    "records.sources": set(),
    "records.versions": set(),
    "records.whole_files": set(),
    "quant": {"torch"} | NUMBERS,
    "quant.row_codes": {"torch"},
    "quant.feature_store": {"torch"},
    "quant.segment_store": {"torch"},
    "quant.sparse_rows": {"torch"},
    "graphs": {"torch"} | NUMBERS,
    "graphs.embedded": {"torch", "sklearn"} | NUMBERS,
    "graphs.fetching": set(),
    "graphs.own.given": set(),
    "graphs.own.tables": {"pandas"} | NUMBERS,
    "graphs.raw": {"torch", "pandas"} | NUMBERS,
    "graphs.raw_sources": set(),
    "graphs.sizes": set(),
    "laws": TABLES,
    "laws.cells": NUMBERS,
    "laws.clipped_normal": NUMBERS,
    "laws.solver": NUMBERS,
    "laws.fits": NUMBERS,
    "laws.goodness_of_fit": NUMBERS,
    "laws.truncated_normal": NUMBERS,
    "search": TABLES | {"sklearn"},
    "search.space": NUMBERS,
    "gnn": {"torch"} | NUMBERS,
    "gnn.attention": {"torch", "torch_geometric"},
    "gnn.pyg": {"torch", "torch_geometric"},
    "gnn.pyg.technique": set(),  # importing PyTorch Geometric takes seconds
    "gnn.shape": set(),
    "gnn.feature_bits": {"torch"},
    "compression": {"torch"},
    "loading": {"torch", "torch_geometric"} | NUMBERS,
    "loading.in_edges": {"numpy"},
    "training": {"torch", "psutil"} | TABLES,
    "training.spec": set(),
    "training.observations": {"torch"} | NUMBERS,
    "distributed": {"torch"} | NUMBERS,
    "distributed.plans": set(),
    "distributed.partition": {"torch", "pymetis"} | NUMBERS,
    "measuring": {"torch"} | TABLES,
    "measuring.byte_books": set(),
    "measuring.large_graph": {"numpy", "torch"},
    "measuring.products": {"numpy", "torch", "psutil"},
    # A machine with a GPU may have torch and little else.
    "measuring.gpu": {"torch"},
    "measuring.gpu.results": set(),
    "measuring.gpu.summary": set(),
    "measuring.compiled_models": {"torch", "pandas"},
    "measuring.compressed_models": {"torch", "torch_geometric", "pandas"},
    "measuring.loading": {"torch", "torch_geometric", "pandas"},
    # The only place that names packages which are no dependencies.
    "measuring.rivals": {"torch", "torchao", "bitsandbytes"},
    "collecting": TABLES,
    "collecting.mixed_versions": set(),
    "features": {"torch"} | TABLES,
    "features.plans": set(),
    "features.space": {"torch"},
    "features.training": {"torch"},
    "settings": {"torch"} | TABLES,
    "settings.checks": set(),
    "settings.plans": set(),
    "settings.space": {"xarray"},
    "settings.rounds": TABLES,
    "settings.choice": TABLES,
    "report": {"jinja2"} | TABLES,
    "report.markdown": set(),
    "report.findings": set(),
    "report.sections": set(),
    "report.figures": PICTURES,
    "report.drawing": PICTURES,
    "configuration": LIGHT,
}
# Where the order allows more than the idea of a module: all of ours that it may import.
STRICTER: dict[str, set[str]] = {
    "quant.dtypes": set(),
    "quant.references": set(),
    "quant.first_order": set(),
    "quant.sparse_rows": {"quant.dtypes"},
    "quant.row_codes": {"quant.blockwise", "quant.fusion"},
    "quant.feature_store": {"quant.dtypes", "quant.fusion", "quant.row_codes"},
    "quant.segment_store": {"quant.dtypes", "quant.fusion", "quant.row_codes"},
    "graphs": {"graphs", "records.whole_files"},
    "graphs.fetching": {"graphs.raw_sources"},
    "graphs.own.given": set(),
    "graphs.sparse_features": {
        *("quant.dtypes", "quant.first_order", "quant.references")
    },
    "gnn": {"gnn", "graphs", "quant"},
    "gnn.feature_bits": {"quant.feature_store"},
    "compression": {"compression", "quant"},
    "loading": {"loading", "graphs"},
    "loading.in_edges": set(),
    "gnn.pyg.technique": set(),
    "gnn.shape": set(),
    # It is in every job: whatever it imported, every job would import and depend on.
    "records.job_log": {"records.devices", "records.versions"},
    "records.datasets": {
        *("records.claims", "records.versions", "records.whole_files"),
    },
    "laws": {"laws"},
    "laws.solved_boundaries": {"records.datasets"},
    "laws.boundary_table": {"laws.clipped_normal", "laws.solver"},
    # It receives `evaluate` as a function, so it knows nothing of networks.
    "search": {"search", "records.datasets"},
    "training.spec": set(),
    "training.observations": set(),
    "distributed.plans": {"training.spec"},
    "measuring.byte_books": {"training.meters", "training.spec", "graphs.sizes"},
    "measuring.rivals": set(),
    # Nothing that imports xarray or netCDF4.
    "measuring.gpu": {
        *("measuring.byte_books", "measuring.gpu", "measuring.rivals"),
        *(
            "gnn.aggregation",
            "graphs",
            "quant.blockwise",
            "quant.rectified",
            "training.meters",
        ),
        *("training.spec", "training.step_memory", "training.trainer"),
    },
    "measuring.gpu.results": set(),
    "measuring.gpu.summary": {"measuring.gpu.results"},
    "collecting": {"collecting", "records.datasets", "training.spec", "graphs.sizes"},
    "features.plans": {"training.spec"},
    "features.training": {"gnn", "graphs", "quant.feature_store"},
    "features.space": {"search.space", "gnn", "quant.row_codes"},
    # Rounds and answers know archives and no networks: editing them trains nothing.
    "settings.checks": set(),
    "settings.plans": {"features.plans", "training.spec"},
    "settings.space": {"settings.plans", "search.space", "training.spec"},
    "settings.rounds": {"settings.plans", "settings.space", "search", "records"},
    "settings.choice": {
        *("settings.plans", "settings.rounds", "settings.space"),
        *("search.result", "records.datasets"),
    },
    "report": {
        *("records.datasets", "report.markdown", "report.sections", "report.findings"),
    },
    "report.tables": {"report.tables", "report.markdown"},
    "report.tables.counted": {
        *("measuring.byte_books", "training.spec", "graphs.sizes")
    },
    "report.tables.memory": {"report.tables", "training.spec"},
    "report.figures": {"report.figures", "report.drawing"},
    "report.drawing": {"report.drawing"},
    # Every start of Snakemake imports it.
    "configuration": {
        *("configuration", "features.plans", "settings.plans", "settings.checks"),
        "graphs.fetching",  # what a mirror can be
        "graphs.own.given",  # what a file of one's own can be
        "training.spec",
    },
}
# Rooms that a script may not call: it goes through the doors above them.
INSIDE = {"quant", "gnn"}
NOBODY_MAY = {"snakemake", "workflow", "tests"}
# What a working set-up has anyway and nothing but the Snakefile's start-up notices.
HEAVY = {"torch", "numpy", "pandas", "xarray", "scipy", "torch_geometric"}


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(LIBRARY).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {
    module_name(path): path
    for path in sorted(LIBRARY.rglob("*.py"))
    if path.name != "__init__.py"
}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Top-level packages, and modules of ours, that the file names in imports."""
    outside, ours = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name lives"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "pipeline_src":
                ours.add(owner(name.removeprefix("pipeline_src.")))
            else:
                outside.add(name.split(".")[0])
    return outside - STANDARD, ours


def owner(name: str) -> str:
    """The module that a dotted name lies in: quant.noise.uniform -> quant.noise."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def within(name: str, rooms: Iterable[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def longest(name: str, rooms: Iterable[str]) -> str | None:
    """The entry that decides about a module; None if there is none."""
    return max((room for room in rooms if within(name, {room})), key=len, default=None)


def package_of(name: str) -> str:
    return name.partition(".")[0]


def test_every_package_has_its_floor_and_charter():
    folders = {path.parent for path in LIBRARY.glob("*/__init__.py")}
    assert {folder.name for folder in folders} == set(FLOOR_OF)
    for charters in FLOORS:
        for name, charter in charters.items():
            tree = ast.parse((LIBRARY / name / "__init__.py").read_text())
            assert ast.get_docstring(tree) == charter, f"{name}: one charter, not two"


def test_every_module_lies_in_a_package():
    for name in MODULES:
        assert package_of(name) in FLOOR_OF, f"{name} lies in no package"


# The kernels stay as they are while they are being extended.
LARGER = {"quant"}


def test_packages_are_small():
    """At most a dozen modules are read as one list."""
    sizes = Counter(name.rpartition(".")[0] for name in MODULES)
    too_large = {name for name, size in sizes.items() if size > 12}
    assert too_large <= LARGER, {name: sizes[name] for name in too_large}


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downwards(name):
    """A package further up the house is never imported, nor a neighbour."""
    package = package_of(name)
    for other in sorted(imports(MODULES[name])[1]):
        assert (
            package_of(other) == package
            or FLOOR_OF[package_of(other)] < FLOOR_OF[package]
        ), (
            f"{name} (floor {FLOOR_OF[package]}) imports {other} (floor "
            f"{FLOOR_OF[package_of(other)]}); imports run to lower floors only"
        )


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_what_its_room_may(name):
    outside, ours = imports(MODULES[name])
    packages = PACKAGES[longest(name, PACKAGES)]
    assert outside <= packages, (
        f"{name} imports {sorted(outside - packages)}; it may import {sorted(packages)}"
    )
    if room := longest(name, STRICTER):
        strangers = {other for other in ours if not within(other, STRICTER[room])}
        assert not strangers, (
            f"{name} (room {room}) imports our {sorted(strangers)}; "
            f"it may import {sorted(STRICTER[room])}"
        )


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda s: s.stem)
def test_scripts_are_plugs(script):
    """A script calls rooms that are doors, and does no arithmetic of its own."""
    outside, ours = imports(script)
    strangers = {name for name in ours if within(name, INSIDE)}
    assert not strangers, f"{script.name} imports {sorted(strangers)}"
    # torch is there for its number of threads.
    assert outside <= {"torch"}, f"{script.name} imports {sorted(outside)}"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 60


def test_every_script_has_its_rule_and_every_rule_its_script():
    rules = "".join(path.read_text() for path in (ROOT / "workflow").rglob("*.smk"))
    for script in SCRIPTS.glob("*.py"):
        assert f"rule {script.stem}:" in rules
        assert f'"../scripts/{script.name}"' in rules
        # Where a class may be trained, its file is a source as well.
        assert re.search(rf'sources(_with_class)?\("{script.stem}"[,)]', rules)


@pytest.mark.parametrize("name", MODULES)
def test_nobody_imports_the_workflow(name):
    outside, _ = imports(MODULES[name])
    assert not outside & NOBODY_MAY


def test_packages_export_nothing():
    """One name lives in one place: `__init__` holds a docstring at most.

    That of the library names the public ones; test_public_names.py holds it to that.
    """
    for path in LIBRARY.glob("*/**/__init__.py"):
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        assert all(isinstance(node, ast.Expr) for node in statements), path


EXECUTES = {
    *("eval", "exec", "__import__", "os.system", "os.popen", "pickle.load"),
    *("pickle.loads", "yaml.load", "yaml.full_load", "yaml.unsafe_load"),
    *("shutil.unpack_archive", "runpy.run_path", "subprocess.run", "subprocess.Popen"),
}
# It starts ranks: our own module, by a list of arguments that no shell reads.
STARTS = {(LIBRARY / "distributed" / "jobs" / "launch.py", "subprocess.Popen")}


@pytest.mark.parametrize(
    "path", [*MODULES.values(), *SCRIPTS.glob("*.py")], ids=lambda path: path.stem
)
def test_what_is_read_is_never_executed(path):
    """No call that could run what a file says, and no array that may hold objects."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if (path, called) not in STARTS:
                assert called not in EXECUTES, f"{path}:{node.lineno} calls {called}"
            assert not called.endswith((".extractall", ".extract")), path.name
            if called == "np.load":
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("allow_pickle") == "False", f"{path.name}: np.load"
            if called == "torch.load":
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("weights_only") == "True", f"{path.name}: torch.load"


def test_imports_form_no_cycle():
    edges = {name: imports(path)[1] - {name} for name, path in MODULES.items()}
    while leaves := {name for name, needs in edges.items() if not needs}:
        edges = {
            name: needs - leaves for name, needs in edges.items() if name not in leaves
        }
    assert not edges, f"these import each other: {sorted(edges)}"


def test_starting_snakemake_imports_nothing_heavy():
    """What the rule files import, in a fresh interpreter."""
    code = (
        "import sys\n"
        "from pipeline_src.configuration import checks, plans\n"
        "from pipeline_src.features import plans\n"
        "from pipeline_src.graphs import raw_sources\n"
        "from pipeline_src.graphs.own import given\n"
        "from pipeline_src.quant import compilers\n"
        "from pipeline_src.records import claims, sources, whole_files\n"
        "from pipeline_src.settings import plans\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert loaded.returncode == 0, loaded.stderr
    assert not set(loaded.stdout.split()) & HEAVY


# The compiler, and what other jobs need; each takes longer than a short training.
UNUSED_BY_TRAININGS = {"torch._dynamo", "torch._inductor", "sympy", "sklearn"} | {
    *("torch_geometric", "ogb", "scipy.stats", "matplotlib", "plotnine", "jinja2")
}


@pytest.mark.parametrize("policy", ["full", "exact", "lean"])
def test_a_short_training_imports_only_what_it_uses(policy, tmp_path):
    """The script of rule train_run and a whole job, in a fresh interpreter."""
    code = (
        "import runpy, sys\n"
        "from pathlib import Path\n"
        "from pipeline_src.training.spec import MethodSpec, ModelSpec\n"
        "from pipeline_src.training.spec import RunSpec, TrainingSpec\n"
        "from pipeline_src.graphs.embedded import synthetic_graph\n"
        "from pipeline_src.graphs.files import write_graph\n"
        "script, policy, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])\n"
        "write_graph(synthetic_graph(num_nodes=200, num_edges=900), folder / 'g.npz')\n"
        "model = ModelSpec('sage', 'sage', 2, 8, 0.5, True)\n"
        "bits = {} if policy == 'full' else {'bits': 2, 'rows_per_block': 8}\n"
        "method = MethodSpec(policy, policy, policy, **bits)\n"
        "training = TrainingSpec(2, 0.01, 0.0, 0.5, 'cross_entropy')\n"
        "spec = RunSpec('synthetic', model, method, training, (0, 1))\n"
        "main = runpy.run_path(script)['main']\n"
        "main(spec, folder / 'g.npz', None, [], folder / 'record.nc')\n"
        "print(*sys.modules)"
    )
    script = SCRIPTS / "train_run.py"
    done = subprocess.run(
        [sys.executable, "-c", code, script, policy, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & UNUSED_BY_TRAININGS
