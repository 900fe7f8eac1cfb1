"""What the rules share: the checked configuration, names, paths, input functions."""

import contextlib
import os
import re
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

ROOT = Path(workflow.current_basedir.get_path_or_uri(secret_free=False)).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline_src.experiment.activation_plans import activation_plans
from pipeline_src.experiment.claims import ClaimedError, claim, holder_of
from pipeline_src.experiment.configuration import (
    ConfigurationError,
    checked_configuration,
    read_schema,
    refuse_repeated_keys,
)
from pipeline_src.experiment.feature_plans import feature_plans
from pipeline_src.experiment.plans import (
    byte_book_specs,
    capture_plans,
    measurement_plans,
    run_specs,
    sizes_vary,
)
from pipeline_src.experiment.sources import imported_sources
from pipeline_src.quant.compilers import plain_kernels_warning
from pipeline_src.whole_files import write_whole

# Jobs find the interpreter that runs Snakemake, the library, and compiled kernels.
for name, folder in {"PATH": Path(sys.executable).parent, "PYTHONPATH": ROOT}.items():
    folders = os.environ.get(name, "").split(os.pathsep)
    if str(folder) != folders[0]:
        os.environ.update(
            {name: os.pathsep.join([str(folder), *filter(None, folders)])}
        )
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / ".cache" / "inductor"))

try:
    refuse_repeated_keys([*workflow.configfiles, *workflow.overwrite_configfiles])
    CONFIG = checked_configuration(
        config, read_schema(ROOT / "workflow" / "schemas" / "config.schema.yaml")
    )
except ConfigurationError as error:
    raise WorkflowError(f"The configuration cannot be run:\n{error}") from None
config.update(CONFIG)  # what scripts see: device, compile, data_mirror, figures

# Held by the workflow at work on these results; Snakemake's own locks outlive a kill.
CLAIM = Path(".snakemake") / "claims" / CONFIG["run"]
LOCKS = Path(".snakemake") / "locks"

CELLS = {spec.cell: spec for spec in run_specs(CONFIG)}
MEASUREMENTS = {plan.name: plan for plan in measurement_plans(CONFIG)}
CAPTURES = {plan.name: plan for plan in capture_plans(CONFIG)}
BYTE_BOOKS = byte_book_specs(CONFIG)
LABELS = {name: method["label"] for name, method in CONFIG["methods"].items()}
# What each record should hold, by the name of its file.
ASKED = {name: [spec.to_params()] for name, spec in CELLS.items()} | {
    name: [spec.to_params() for spec in plan.specs]
    for name, plan in MEASUREMENTS.items()
}
KERNELS = CONFIG["kernels"] or {}
FEATURES = {plan.name: plan for plan in feature_plans(CONFIG)}
# Blocks of networks, and the plan of each; bits are measured on those of fresh seeds.
MEASURED_NETWORKS = {
    block.name: (block, plan) for plan in FEATURES.values() for block in plan.blocks
}
NETWORKS = MEASURED_NETWORKS | {
    plan.selection.name: (plan.selection, plan) for plan in FEATURES.values()
}
SEARCHES = {plan.name: plan for plan in activation_plans(CONFIG)}
# Blocks of fresh seeds on which selected settings are measured, and the plan of each.
FRESH_SEEDS = {
    name: (block, plan)
    for plan in SEARCHES.values()
    for name, block in plan.measured.items()
}
FORMATS = CONFIG["figures"]["formats"]
COLLECTED_TABLES = [
    "accuracy",
    "memory",
    "training",
    "ablation",
    "distributions",
    "boundaries",
    *(["kernels"] if KERNELS else []),
    *(["selected_bits", "sgquant", "abs_search"] if FEATURES else []),
]
SETTING_TABLES = ["activation_settings", "activation_search"]
TABLES = [
    *COLLECTED_TABLES,
    *(SETTING_TABLES if SEARCHES else []),
    *(["byte_books"] if BYTE_BOOKS else []),
]
METHODS = [spec.method for plan in MEASUREMENTS.values() for spec in plan.specs]
FIGURES = [
    *(["accuracy_memory", "training_curves"] if CELLS else []),
    "boundaries",
    *(["memory_block_size", "epoch_time_block_size"] if MEASUREMENTS else []),
    *(["pareto"] if any(method.policy == "pyg" for method in METHODS) else []),
    *(["scaling"] if sizes_vary(MEASUREMENTS.values()) else []),
    *(["ablation"] if any(method.without for method in METHODS) else []),
    *(["position_histograms", "quantile_quantile"] if CAPTURES else []),
    *(["bit_search", "bit_front"] if FEATURES else []),
    *(["setting_front"] if SEARCHES else []),
]
CAPTIONS = os.path.relpath(ROOT / "workflow" / "report" / "figure.rst")
# A request, not a limit; on a cluster the profile asks instead.
GPUS = int(
    CONFIG["device"] != "cpu" and Path(os.devnull).with_name("nvidiactl").exists()
)


def one_of(names):
    """A wildcard's pattern that matches these names and nothing else."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    graph="[a-z0-9_]+",
    cell=one_of(CELLS),
    plan=one_of(MEASUREMENTS),
    capture=one_of(CAPTURES),
    figure=one_of(FIGURES),
    features=one_of(FEATURES),
    networks=one_of(NETWORKS),
    search=one_of(SEARCHES),
    fresh=one_of(FRESH_SEEDS),
    round="[1-9][0-9]*",
    part="[0-9]+",


def sources(rule):
    """A rule's script and the library's files behind it, relative to the working folder.

    Relative, because Snakemake would run everything again if the checkout moved. As
    inputs they count by content; what Snakemake calls code, a script, counts by date.
    """
    script = ROOT / "workflow" / "scripts" / f"{rule}.py"
    files = [script, *imported_sources(script, ROOT)]
    return [os.path.relpath(path) for path in files]


def tables(names):
    """Each table comes as Markdown, to read, and as CSV."""
    return [f"{name}.{ending}" for name in names for ending in ("md", "csv")]


def graph_file(graph):
    return f"resources/graphs/{graph}.npz"


def boundaries_file(*specs):
    """The solver's table, if one of the runs takes its bin edges from there."""
    needed = any(spec.method.needs_boundaries for spec in specs)
    return "<results>/boundaries.nc" if needed else []


def graph_of_run(wildcards):
    return graph_file(CELLS[wildcards.cell].graph)


def boundaries_of_run(wildcards):
    return boundaries_file(CELLS[wildcards.cell])


def spec_of_run(wildcards):
    return CELLS[wildcards.cell].to_params()


def graph_of_measurement(wildcards):
    return graph_file(MEASUREMENTS[wildcards.plan].specs[0].graph)


def boundaries_of_measurement(wildcards):
    return boundaries_file(*MEASUREMENTS[wildcards.plan].specs)


def specs_of_measurement(wildcards):
    return [spec.to_params() for spec in MEASUREMENTS[wildcards.plan].specs]


def timed_methods_of_measurement(wildcards):
    return list(MEASUREMENTS[wildcards.plan].timed)


def warmup_of_measurement(wildcards):
    return MEASUREMENTS[wildcards.plan].warmup


def repeats_of_measurement(wildcards):
    return MEASUREMENTS[wildcards.plan].repeats


def specs_of_byte_books(wildcards):
    return [spec.to_params() for spec in BYTE_BOOKS]


def gradient_draws_of_measurement(wildcards):
    return MEASUREMENTS[wildcards.plan].gradient_draws


def graph_of_capture(wildcards):
    return graph_file(CAPTURES[wildcards.capture].spec.graph)


def boundaries_of_capture(wildcards):
    return boundaries_file(CAPTURES[wildcards.capture].spec)


def spec_of_capture(wildcards):
    return CAPTURES[wildcards.capture].spec.to_params()


def epochs_of_capture(wildcards):
    return list(CAPTURES[wildcards.capture].epochs)


def graph_of_networks(wildcards):
    return graph_file(NETWORKS[wildcards.networks][0].graph)


def training_of_networks(wildcards):
    return NETWORKS[wildcards.networks][0].to_params()


def selection_of_networks(wildcards):
    plan = MEASURED_NETWORKS[wildcards.networks][1]
    return f"<results>/features/selections/{plan.name}.nc"


def measurement_of_networks(wildcards):
    return MEASURED_NETWORKS[wildcards.networks][1].measurement.to_params()


def graph_of_features(wildcards):
    return graph_file(FEATURES[wildcards.features].selection.graph)


def selection_networks_of_features(wildcards):
    networks = FEATURES[wildcards.features].selection
    return f"<results>/features/networks/{networks.name}.nc"


def search_of_features(wildcards):
    return FEATURES[wildcards.features].search.to_params()


def graph_of_search(wildcards):
    return graph_file(SEARCHES[wildcards.search].search.run.graph)


def boundaries_of_search(wildcards):
    needed = SEARCHES[wildcards.search].search.needs_boundaries
    return "<results>/boundaries.nc" if needed else []


def params_of_search(wildcards):
    return SEARCHES[wildcards.search].search.to_params()


def evaluations_per_job_of_search(wildcards):
    return SEARCHES[wildcards.search].evaluations_per_job


def round_file(search, number):
    return f"<results>/activations/rounds/{search}-{number}.nc"


def evaluation_files(search, number):
    """All parts of a round's evaluations."""
    folder = "<results>/activations/evaluations"
    parts = range(SEARCHES[search].num_parts)
    return [f"{folder}/{search}-{number}-{part}.nc" for part in parts]


def previous_round(wildcards):
    number = int(wildcards.round) - 1
    return round_file(wildcards.search, number) if number else []


def evaluations_of_previous_round(wildcards):
    number = int(wildcards.round) - 1
    return evaluation_files(wildcards.search, number) if number else []


def last_round(wildcards):
    return round_file(wildcards.search, SEARCHES[wildcards.search].rounds)


def evaluations_of_last_round(wildcards):
    return evaluation_files(wildcards.search, SEARCHES[wildcards.search].rounds)


def graph_of_fresh_seeds(wildcards):
    return graph_file(FRESH_SEEDS[wildcards.fresh][0].graph)


def boundaries_of_fresh_seeds(wildcards):
    needed = FRESH_SEEDS[wildcards.fresh][1].needs_boundaries
    return "<results>/boundaries.nc" if needed else []


def selection_of_fresh_seeds(wildcards):
    plan = FRESH_SEEDS[wildcards.fresh][1]
    return f"<results>/activations/selections/{plan.name}.nc"


def block_of_fresh_seeds(wildcards):
    return FRESH_SEEDS[wildcards.fresh][0].to_params()


def methods_of_fresh_seeds(wildcards):
    return FRESH_SEEDS[wildcards.fresh][1].methods_to_params()


def forget_dead_workflows():
    """Remove the lock that a killed workflow left, if none is at work in this folder."""
    if not workflow.is_main_process:
        return
    with contextlib.suppress(OSError):  # a read-only folder can be looked at
        CLAIM.parent.mkdir(parents=True, exist_ok=True)
        CLAIM.touch()
    holders = {path.name: holder_of(path) for path in CLAIM.parent.glob("*")}
    alive = {run: holder for run, holder in holders.items() if holder}
    if not alive:
        shutil.rmtree(LOCKS, ignore_errors=True)
    for run, holder in alive.items():
        print(
            f"Note: results/{run} is being made by {holder}. A second start on it is"
            " refused until that one ends: wait, or stop it, or give this one a name"
            " of its own with --config run=NAME. Do not use --unlock.",
            file=sys.stderr,
        )


def claim_results():
    """Refuse to work on results that another makes, or where nothing can be written."""
    results = Path("results") / CLAIM.name
    try:
        write_whole(results / ".writable", "")
        (results / ".writable").unlink()
    except OSError as error:
        raise WorkflowError(f"{results} is of no use: {error}") from None
    try:
        claim(CLAIM)
    except ClaimedError as error:
        raise WorkflowError(
            f"results/{CLAIM.name} is being made already: {error}. Wait until it"
            " ends, or stop it, or give this one a name of its own with"
            " --config run=NAME"
        ) from None


def warn_of_plain_kernels():
    """Once, before the first job; jobs ask for themselves, perhaps elsewhere."""
    warning = plain_kernels_warning(CONFIG["compile"])
    if warning and not GPUS:
        print(f"Warning: {warning}", file=sys.stderr)


def print_summary():
    """The tables that most readers want first, in the terminal."""
    results = Path("results") / CONFIG["run"]
    untrained = [
        *(["selected_bits"] if FEATURES else []),
        *(["activation_settings"] if SEARCHES else []),
    ] or ["training"]
    for table in ["accuracy", "memory"] if CELLS else untrained:
        path = results / "tables" / f"{table}.md"
        if path.exists():
            print(path.read_text(encoding="utf-8"))
    print(f"Everything is below {results}; start with {results / 'report.html'}.")


forget_dead_workflows()
