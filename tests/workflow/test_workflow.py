"""The workflow as its users meet it: plans, formatting, whole tiny runs."""

import csv
import os
import shutil
from pathlib import Path

import pytest
from checkouts import call, planned, snakemake

ROOT = Path(__file__).resolve().parents[2]


def test_lint_is_clean():
    snakemake("--lint")


def test_formatting_is_snakefmts():
    done = call("snakefmt", "--check", "Snakefile", "workflow")
    assert done.returncode == 0, done.stderr


def test_entry_files_are_short_and_hold_no_functions():
    lines = (ROOT / "workflow" / "Snakefile").read_text().splitlines()
    assert len(lines) <= 40
    assert not [line for line in lines if line.startswith("def ")]


RESULTS = {
    "solve_boundaries": 1,
    "benchmark_training": 2,
    "collect_runs": 1,
    "check_results": 1,
    "plot_figure": 7,
    "write_tables": 1,
    "write_report": 1,
    "all": 1,
}
DEFAULT = RESULTS | {
    "prepare_graph": 2,
    "benchmark_training": 1,
    "capture_activations": 1,
    "fit_distributions": 1,
    "plot_figure": 8,
    "train_run": 5,
}
PLANETOID = RESULTS | {
    "fetch_graph": 4,
    "prepare_graph": 4,
    "capture_activations": 4,
    "fit_distributions": 4,
    "train_run": 4 * 4,  # graphs, each with its model, x methods
    "benchmark_training": 1,
}
PAIRED = {
    "solve_boundaries": 1,
    "collect_runs": 1,
    "check_results": 1,
    "plot_figure": 3,  # none of what was measured or captured
    "write_tables": 1,
    "write_report": 1,
    "all": 1,
    "fetch_graph": 4,
    "prepare_graph": 5,
    # digits: models x methods; else graphs x methods x blocks of seeds
    "train_run": 2 * 3 + 4 * 2 * 2,
}
COMPRESS = RESULTS | {
    "check_model": 4,
    "fetch_graph": 1,
    "prepare_graph": 2,
    "plot_figure": 3,  # a class has no size, so no growth, and no blocks of one
    "benchmark_training": 4,
    # digits, and Cora: models x methods x blocks of seeds
    "train_run": 4 * 2 * 2 + 2 * 2 * 2,
}
EXACT = PAIRED | {
    "check_model": 1,
    "fetch_graph": 1,
    "prepare_graph": 1,
    # models x methods x seeds; GCNII, a class, is not trained by EXACT
    "train_run": (2 * 3 + 2) * 10,
}
EXACT_BATCHES = {name: one for name, one in EXACT.items() if name != "check_model"} | {
    "train_run": 2 * 3 * 10,
}
PAPER = RESULTS | {
    "fetch_graph": 2,
    "prepare_graph": 2,
    "capture_activations": 2,
    "fit_distributions": 2,
    "plot_figure": 8,
    "train_run": 2 * 11 * 2,  # graphs x methods x blocks of seeds
}
BENCHMARK = RESULTS | {
    "prepare_graph": 2,
    "benchmark_kernels": 1,
    "plot_figure": 5,  # none of what trainings reached
}
SCALING = RESULTS | {
    "prepare_graph": 5,
    "benchmark_training": 5 + 6,  # growing graphs, and models on one of them
    "plot_figure": 4,
}

SGQUANT = RESULTS | {
    "fetch_graph": 4,
    "prepare_graph": 5,
    # graphs x models and Computers anew, x selection and two blocks of seeds
    "train_features": (5 * 3 + 1) * (1 + 2),
    "search_bits": 5 * 3 + 1,
    "measure_bits": (5 * 3 + 1) * 2,
    "collect_bits": 1,
    "plot_figure": 1 + 3,
}
del SGQUANT["benchmark_training"]
SELECTION = RESULTS | {
    "prepare_graph": 1,
    "start_search": 1,
    "propose_round": 5,
    "evaluate_settings": 5 * 2,  # 4 searches may propose 8 settings, in jobs of 16
    "choose_settings": 1,
    "measure_settings": 2,
    "collect_settings": 1,
    "write_setting_tables": 1,
    "plot_figure": 1 + 1,
}
del SELECTION["benchmark_training"]


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        ((), DEFAULT),
        (("--snakefile", "workflow/Snakefile"), DEFAULT),
        (("--configfile", "config/planetoid.yaml"), PLANETOID),
        (("--configfile", "config/paired.yaml"), PAIRED),
        (("--configfile", "config/compress.yaml"), COMPRESS),
        (("--configfile", "config/exact.yaml"), EXACT),
        (("--configfile", "config/exact-batches.yaml"), EXACT_BATCHES),
        (("--configfile", "config/paper.yaml"), PAPER),
        (("--configfile", "config/benchmark.yaml"), BENCHMARK),
        (("--configfile", "config/scaling.yaml"), SCALING),
        (("--configfile", "config/sgquant.yaml"), SGQUANT),
        (("--configfile", "config/selection.yaml"), SELECTION),
        (
            ("--configfile", "config/paper.yaml", "--replace-workflow-config"),
            PAPER,
        ),
    ],
    ids=[
        "default",
        "inner",
        "planetoid",
        "paired",
        "compress",
        "exact",
        "exact-batches",
        "paper",
        "benchmark",
        "scaling",
        "sgquant",
        "selection",
        "paper-alone",
    ],
)
def test_a_configuration_asks_for_these_jobs(checkout, arguments, jobs):
    """In an empty folder, so that nothing is there already."""
    assert planned(*arguments, cwd=checkout) == jobs


def test_kernels_are_benchmarked_where_the_section_is_present(checkout):
    """One job more, in a table of the same names; null is the same as no section."""
    text = (checkout / "config" / "config.yaml").read_text(encoding="utf-8")
    for section, more in {"{}": {"benchmark_kernels": 1}, "null": {}}.items():
        path = checkout / "kernels.yaml"
        path.write_text(f"{text}\nkernels: {section}\n", encoding="utf-8")
        jobs = planned("--configfile", path.name, cwd=checkout)
        assert jobs == DEFAULT | more
        table = "results/default/tables/kernels.csv"
        status = 0 if more else 1
        snakemake(
            "-n", table, "--configfile", path.name, cwd=checkout, exit_status=status
        )


def test_a_wrong_configuration_is_refused_in_words(checkout):
    text = snakemake("-n", "--config", "devise=cpu", cwd=checkout, exit_status=1)
    assert "devise: unknown key; did you mean 'device'?" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: x\nmodels: {a: [1\n", "Config file is not valid JSON or YAML."),
        ("", "Config file must be given as JSON or YAML with keys at top level."),
        (
            "- run\n",
            "Config file must be given as JSON or YAML with keys at top level.",
        ),
        ("run: x\nrun: y\n", "line 2: 'run' is given in line 1 already"),
        ("run: &a [*a]\n", "top level: expected at most 12 levels below each other"),
        (
            "run: !!python/object/apply:os.mkdir [executed]\n",
            "Config file is not valid JSON or YAML.",
        ),
    ],
    ids=["syntax", "empty", "list", "twice", "endless", "tag"],
)
def test_a_wrong_file_gets_one_message(checkout, text, message):
    """The first three and the last are Snakemake's own, before the workflow is read."""
    path = checkout / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    output = snakemake("-n", "--configfile", path.name, cwd=checkout, exit_status=1)
    assert message in output
    assert output.count("Error") == 1
    assert "Traceback" not in output
    assert not (checkout / "executed").exists(), "a tag is no code"


def test_unknown_cells_have_no_rule(checkout):
    target = "results/default/runs/digits-sage-2x64-block3-s0to4.nc"
    text = snakemake("-n", target, cwd=checkout, exit_status=1)
    assert "MissingRuleException" in text


@pytest.mark.parametrize("profile", ["gpu", "slurm", "slurm-gpu"])
def test_profiles_plan_the_same_jobs(checkout, profile):
    """As the default one, found by itself: a profile says where jobs run, not what."""
    jobs = planned("--workflow-profile", f"profiles/{profile}", cwd=checkout)
    assert jobs == DEFAULT


TINY = """
run: tiny
device: cpu
compile: false
models:
  sage-2x16: {layer: sage, num_layers: 2, hidden: 16}
methods:
  fp32: {label: FP32, policy: full}
  exact: {label: EXACT, policy: exact, bits: 2, projection_ratio: 4}
  block16:
    label: G/R = 16
    policy: exact
    bits: 2
    projection_ratio: 4
    rows_per_block: 16
  block16-vm:
    label: G/R = 16 + VM
    policy: exact
    bits: 2
    projection_ratio: 4
    rows_per_block: 16
    boundaries: clipped_normal
sweeps:
  - graphs: [digits]
    models: [sage-2x16]
    methods: [fp32, block16-vm]
    seeds: 2
    training: {epochs: 15, gradient_clip: 0.5}
measurements:
  - graphs: [digits]
    models: [sage-2x16]
    methods: [fp32, exact, block16]
    timed_methods: [fp32, exact, block16]
    warmup: 1
    repeats: 2
captures:
  - {graphs: [digits], models: [sage-2x16], method: block16, epochs: [1, 5]}
kernels: {rows: 64, width: 16, bits: [2], block_sizes: [64], repeats: 2}
figures: {formats: [svg]}
"""


def options_in(folder, config):
    """Options of a start in a folder of its own, which holds this configuration."""
    (folder / "config").mkdir()
    (folder / "config" / "config.yaml").write_text(config)
    return "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)


# The environment is not activated: its interpreter is found all the same.
BARE = {"PATH": os.defpath, "TMPDIR": os.environ.get("TMPDIR", "/tmp")}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder in which all rules have run with their real scripts, and what it said.

    The options of a start in it come first.
    """
    folder = tmp_path_factory.mktemp("tiny")
    start = options_in(folder, TINY)
    done = call("snakemake", *start, "--cores", "2", environment=BARE)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return start, folder, done.stdout


@pytest.mark.slow
def test_a_tiny_run_goes_from_graph_to_report(tiny):
    """All rules with their real scripts, in a folder of its own."""
    start, folder, said = tiny
    assert "G/R = 16 + VM" in said, "the summary prints the tables"

    results = folder / "results" / "tiny"
    assert len(list((results / "runs").glob("*.nc"))) == 2
    assert len(list((results / "tables").glob("*"))) == 14
    assert len(list((results / "figures").glob("*"))) == 7
    assert all(path.stat().st_size for path in results.glob("[!l]*/*"))  # not the logs
    assert "<html" in (results / "report.html").read_text(encoding="utf-8")
    assert not list(results.rglob("*.tmp"))

    again = call("snakemake", *start, "--cores", "2", environment=BARE)
    assert "Nothing to be done" in again.stdout + again.stderr


UNTRAINED = """
sweeps: []
captures: []
byte_books:
  - {graphs: [products_shape], models: [sage-2x16], methods: [fp32, exact]}
"""


@pytest.mark.slow
def test_a_benchmark_needs_no_training(tiny, tmp_path):
    """Measurements and byte books alone, with real scripts, to the report.

    What a run with trainings has measured holds without them, and is not made again.
    """
    kept = TINY.partition("sweeps:")[0]
    measurements = "measurements:" + TINY.partition("measurements:")[2]
    measurements = measurements.partition("captures:")[0]
    text = kept + measurements + UNTRAINED + "figures: {formats: [svg]}\n"
    start = options_in(tmp_path, text)
    _, measured, _ = tiny
    for kept in (".snakemake", "resources", "results/tiny/measurements"):
        shutil.copytree(measured / kept, tmp_path / kept)
    shutil.copy2(measured / "results/tiny/kernels.nc", tmp_path / "results/tiny")
    output = snakemake(*start, "--cores", "2")
    assert "# Training" in output, "the summary prints the benchmark"
    assert "rule benchmark_training" not in output
    results = tmp_path / "results" / "tiny"
    tables = {path.name for path in (results / "tables").glob("*.csv")}
    assert {"training.csv", "ablation.csv"} <= tables
    memory = (results / "tables" / "memory.md").read_text(encoding="utf-8")
    assert memory.count("| products_shape | sage-2x16 |") == 2
    figures = {path.stem for path in (results / "figures").glob("*")}
    assert figures == {"boundaries", "memory_block_size", "epoch_time_block_size"}
    assert (results / "report.html").exists()
    again = call("snakemake", *start, "--cores", "2")
    assert "Nothing to be done" in again.stdout + again.stderr


FEATURES = """
run: features
device: cpu
compile: false
models: {}
methods: {}
sweeps: []
feature_bits:
  - graphs: [digits]
    models: [gcn]
    epochs: 5
    seeds: 3
    seeds_per_job: 2
    selection_seeds: 2
    budget: 8
    strategies: [random]
    equal_bits: 2
    equal_budget: 4
    uniform_bits: [1]
    tuned_uniform_bits: [1]
    fine_tuning_epochs: 2
figures: {formats: [png]}
"""


@pytest.mark.slow
def test_feature_bits_go_from_graph_to_report_and_repeat_only_what_changed(tmp_path):
    """Training, selection and measurement with real scripts; then what each repeats."""
    start = options_in(tmp_path, FEATURES)
    path = tmp_path / "config" / "config.yaml"
    output = snakemake(*start, "--cores", "2")
    assert "# Selected bits of stored features" in output, "the summary prints it"
    results = tmp_path / "results" / "features"
    names = {path.stem for path in results.glob("features/*/*.nc")}
    blocks = {"digits-gcn-s0to1", "digits-gcn-s2to2"}
    assert names == blocks | {"digits-gcn-s1000to1001", "digits-gcn"}
    assert not list(results.rglob("features/*/.partial/*"))
    text = (results / "tables/sgquant.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    methods = [row["method"] for row in rows]
    assert methods[:2] == ["ABS", "ABS tuned"]
    assert methods[-2:] == ["uniform 1", "uniform 1 tuned"]
    assert {row["hyperparameters"] for row in rows} == {"published, 5 epochs"}
    assert "NaN" not in {row["drop_tuned"] for row in rows}
    figures = {path.stem for path in (results / "figures").glob("*")}
    assert figures == {"boundaries", "bit_search", "bit_front", "bit_drops"}
    assert "ABS tuned" in (results / "report.html").read_text(encoding="utf-8")
    assert not planned(*start)

    computing = {"train_features", "search_bits", "measure_bits"}
    for old, new, jobs in (
        ("seeds: 3\n", "seeds: 4\n", {"train_features": 1, "measure_bits": 1}),
        ("tuned_uniform_bits: [1]", "tuned_uniform_bits: []", {"measure_bits": 2}),
        ("budget: 8\n", "budget: 9\n", {"search_bits": 1, "measure_bits": 2}),
        ("selection_seeds: 2", "selection_seeds: 1", None),
    ):
        path.write_text(FEATURES.replace(old, new, 1))
        again = planned(*start)
        if jobs is None:
            jobs = {"train_features": 1, "search_bits": 1, "measure_bits": 2}
        assert {rule: n for rule, n in again.items() if rule in computing} == jobs
