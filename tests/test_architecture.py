"""Who may import whom, as a table. A room is a folder or a module of the library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "pipeline_src"
SCRIPTS = ROOT / "workflow" / "scripts"

STANDARD = set(sys.stdlib_module_names)
NUMBERS = {"numpy", "scipy"}
TABLES = NUMBERS | {"pandas", "xarray"}
LIGHT: tuple[set[str], set[str]] = (
    {"yaml", "jsonschema"},
    {
        f"experiment.{name}"
        for name in (
            "spec",
            "plans",
            "activation_checks",
            "activation_plans",
            "feature_plans",
            "method_keys",
            "plain_values",
            "schemas",
        )
    },
)

# room -> (packages it may import beside the standard library, rooms of ours).
# The longest matching name decides.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "whole_files": (set(), set()),
    "quant": ({"torch"} | NUMBERS, {"quant"}),
    "quant.boundaries": (NUMBERS, set()),
    "quant.feature_store": ({"torch"}, {"quant.fusion", "quant.row_codes"}),
    "quant.row_codes": ({"torch"}, {"quant.blockwise", "quant.fusion"}),
    "quant.segment_store": ({"torch"}, {"quant.fusion", "quant.row_codes"}),
    "quant.sparse_rows": ({"torch"}, set()),
    "gnn": ({"torch", "torch_geometric"} | NUMBERS, {"gnn", "quant", "whole_files"}),
    "gnn.feature_bits": ({"torch"}, {"quant.feature_store"}),
    "gnn.embedded_graphs": ({"torch", "sklearn"} | NUMBERS, {"gnn"}),
    "gnn.raw_graphs": ({"torch", "pandas"} | NUMBERS, {"gnn"}),
    "gnn.raw_sources": (set(), set()),
    "gnn.graph_sizes": (set(), set()),
    "gnn.fetching": (set(), {"gnn.raw_sources"}),
    "experiment": (
        {"torch", "sklearn", "psutil", "netCDF4"} | TABLES,
        {"experiment", "gnn", "quant", "whole_files"},
    ),
    "experiment.kernel_benchmark": (
        TABLES,
        {"experiment.devices", "experiment.records", "measuring.gpu", "quant.fusion"},
    ),
    # A machine with a GPU may have torch and little else.
    "measuring.gpu": (
        {"torch"},
        {
            "experiment.byte_books",
            "experiment.kernel_rivals",
            "experiment.meters",
            "experiment.spec",
            "experiment.step_memory",
            "experiment.trainer",
            "gnn.aggregation",
            "gnn.graph_sizes",
            "gnn.graphs",
            "gnn.planted",
            "measuring.gpu",
            "quant.blockwise",
        },
    ),
    "measuring.gpu.summary": (set(), {"measuring.gpu.results"}),
    "measuring.gpu.results": (set(), set()),
    # The only place that names packages which are no dependencies.
    "experiment.kernel_rivals": ({"torch", "torchao", "bitsandbytes"}, set()),
    "experiment.spec": (set(), set()),
    "experiment.method_keys": (set(), {"experiment.schemas"}),
    "experiment.plain_values": ({"yaml"}, set()),
    "experiment.plans": LIGHT,
    "experiment.feature_plans": LIGHT,
    "experiment.activation_plans": LIGHT,
    "experiment.activation_checks": LIGHT,
    "experiment.schemas": LIGHT,
    "experiment.configuration": LIGHT,
    "experiment.sources": LIGHT,
    "experiment.cells": (NUMBERS, set()),
    "experiment.truncated_normal": (NUMBERS, {"experiment.cells"}),
    "experiment.laws": (
        NUMBERS,
        {"experiment.cells", "experiment.truncated_normal", "quant.boundaries"},
    ),
    "experiment.goodness_of_fit": (
        NUMBERS,
        {"experiment.cells", "experiment.laws", "experiment.truncated_normal"},
    ),
    "experiment.distributions": (
        TABLES,
        {
            "experiment.cells",
            "experiment.goodness_of_fit",
            "experiment.laws",
            "quant.boundaries",
        },
    ),
    "experiment.observations": ({"torch"} | NUMBERS, set()),
    "experiment.feature_training": ({"torch"}, {"gnn", "quant.feature_store"}),
    "experiment.feature_space": (
        {"torch"},
        {
            "experiment.search_space",
            "gnn.feature_bits",
            "gnn.message_plan",
            "quant.row_codes",
        },
    ),
    "experiment.feature_collecting": (TABLES, {"experiment.records"}),
    "experiment.activation_collecting": (TABLES, {"experiment.records"}),
    # Rounds and answers know archives and no networks: editing them trains nothing.
    "experiment.activation_space": (
        {"xarray"},
        {"experiment.activation_plans", "experiment.search_space", "experiment.spec"},
    ),
    "experiment.activation_rounds": (
        TABLES,
        {
            "experiment.activation_plans",
            "experiment.activation_space",
            "experiment.bit_search",
            "experiment.records",
            "experiment.search_archive",
            "experiment.search_result",
        },
    ),
    "experiment.activation_choice": (
        TABLES,
        {
            "experiment.activation_plans",
            "experiment.activation_rounds",
            "experiment.activation_space",
            "experiment.records",
            "experiment.search_result",
        },
    ),
    "experiment.boundary_table": (TABLES, {"quant.boundaries"}),
    "experiment.claims": (set(), set()),
    "experiment.versions": (set(), set()),
    # It is in every job: whatever it imported, every job would import and depend on.
    "experiment.job_log": (set(), {"experiment.devices", "experiment.versions"}),
    "experiment.parts": ({"xarray"}, {"experiment.records"}),
    "experiment.records": (
        TABLES | {"netCDF4"},
        {"experiment.versions", "whole_files"},
    ),
    "experiment.byte_books": (
        set(),
        {"experiment.meters", "experiment.spec", "gnn.graph_sizes"},
    ),
    "experiment.collecting": (
        TABLES,
        {"experiment.records", "experiment.spec", "gnn.graph_sizes"},
    ),
    "experiment.solved_boundaries": (NUMBERS, {"experiment.records"}),
    "experiment.search_space": (NUMBERS, set()),
    "experiment.search_archive": (
        TABLES,
        {"experiment.records", "experiment.search_space"},
    ),
    "experiment.search_result": (
        TABLES,
        {
            "experiment.records",
            "experiment.search_archive",
            "experiment.search_space",
        },
    ),
    "experiment.search_strategies": (
        {"sklearn"} | NUMBERS,
        {"experiment.search_archive", "experiment.search_space"},
    ),
    # It receives `evaluate` as a function, so it knows nothing of networks.
    "experiment.bit_search": (
        TABLES,
        {
            "experiment.records",
            "experiment.search_archive",
            "experiment.search_result",
            "experiment.search_space",
            "experiment.search_strategies",
        },
    ),
    "experiment.tables": (
        TABLES,
        {"experiment.tables.table", "experiment.tables.measured"},
    ),
    "experiment.tables.byte_books": (
        TABLES,
        {
            "experiment.byte_books",
            "experiment.spec",
            "experiment.tables.table",
            "gnn.graph_sizes",
        },
    ),
    "experiment.tables.features": (
        TABLES,
        {
            "experiment.tables.accuracy",
            "experiment.tables.measured",
            "experiment.tables.table",
        },
    ),
    "experiment.tables.settings": (
        TABLES,
        {
            "experiment.tables.accuracy",
            "experiment.tables.measured",
            "experiment.tables.table",
        },
    ),
    "experiment.checks": (TABLES, {"experiment.mixed_versions"}),
    "experiment.mixed_versions": (set(), set()),
    "experiment.report": ({"jinja2"} | TABLES, set()),
    "figures": ({"matplotlib", "plotnine"} | TABLES, {"figures"}),
}
SCRIPTS_MAY = {
    "experiment",
    "figures",
    "gnn.embedded_graphs",
    "gnn.fetching",
    "gnn.graph_files",
    "gnn.raw_graphs",
    "whole_files",
}
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


def within(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def room_of(name: str) -> str:
    return max((room for room in ROOMS if within(name, {room})), key=len)


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_what_its_room_may(name):
    outside, ours = imports(MODULES[name])
    packages, rooms = ROOMS[room_of(name)]
    assert outside <= packages, (
        f"{name} (room {room_of(name)}) imports {sorted(outside - packages)}; "
        f"it may import {sorted(packages)}"
    )
    strangers = {other for other in ours if not within(other, rooms)}
    assert not strangers, (
        f"{name} (room {room_of(name)}) imports our {sorted(strangers)}; "
        f"it may import {sorted(rooms)}"
    )


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda s: s.stem)
def test_scripts_are_plugs(script):
    """A script calls rooms that are doors, and does no arithmetic of its own."""
    outside, ours = imports(script)
    strangers = {name for name in ours if not within(name, SCRIPTS_MAY)}
    assert not strangers, f"{script.name} imports {sorted(strangers)}"
    # torch is there for its number of threads.
    assert outside <= {"torch"}, f"{script.name} imports {sorted(outside)}"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 60


def test_every_script_has_its_rule_and_every_rule_its_script():
    rules = "".join(path.read_text() for path in (ROOT / "workflow").rglob("*.smk"))
    for script in SCRIPTS.glob("*.py"):
        assert f"rule {script.stem}:" in rules
        assert f'"../scripts/{script.name}"' in rules
        assert f'sources("{script.stem}")' in rules


@pytest.mark.parametrize("name", MODULES)
def test_nobody_imports_the_workflow(name):
    outside, _ = imports(MODULES[name])
    assert not outside & NOBODY_MAY


def test_packages_export_nothing():
    """One name lives in one place: `__init__` holds a docstring at most."""
    for path in LIBRARY.rglob("__init__.py"):
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        assert all(isinstance(node, ast.Expr) for node in statements), path


EXECUTES = {
    *("eval", "exec", "__import__", "os.system", "os.popen", "pickle.load"),
    *("pickle.loads", "torch.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load"),
    *("shutil.unpack_archive", "runpy.run_path", "subprocess.run", "subprocess.Popen"),
}


@pytest.mark.parametrize(
    "path", [*MODULES.values(), *SCRIPTS.glob("*.py")], ids=lambda path: path.stem
)
def test_what_is_read_is_never_executed(path):
    """No call that could run what a file says, and no array that may hold objects."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in EXECUTES, f"{path.name}:{node.lineno} calls {called}"
            assert not called.endswith((".extractall", ".extract")), path.name
            if called == "np.load":
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("allow_pickle") == "False", f"{path.name}: np.load"


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
        "from pipeline_src.experiment import claims, configuration, plans\n"
        "from pipeline_src.experiment import sources, spec\n"
        "from pipeline_src.gnn import raw_sources\n"
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
        "from pipeline_src.experiment.spec import MethodSpec, ModelSpec\n"
        "from pipeline_src.experiment.spec import RunSpec, TrainingSpec\n"
        "from pipeline_src.gnn.embedded_graphs import synthetic_graph\n"
        "from pipeline_src.gnn.graph_files import write_graph\n"
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
