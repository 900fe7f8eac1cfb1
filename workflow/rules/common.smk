"""What the rules share: the checked configuration, names and paths."""

import os
import re
from pathlib import Path

from snakemake.exceptions import WorkflowError

from pipeline_src.configuration.checks import (
    ConfigurationError,
    checked_configuration,
    read_schema,
    refuse_repeated_keys,
)
from pipeline_src.configuration.model_keys import file_of_class
from pipeline_src.configuration.plans import (
    blocks_are_measured,
    byte_book_specs,
    capture_plans,
    class_model_specs,
    measurement_plans,
    methods_compete,
    run_specs,
    sizes_vary,
)
from pipeline_src.distributed.plans import refuse_run
from pipeline_src.features.plans import feature_plans
from pipeline_src.records.sources import imported_sources
from pipeline_src.settings.plans import activation_plans

CONFIGURATIONS = dict.fromkeys([*workflow.configfiles, *workflow.overwrite_configfiles])
try:
    refuse_repeated_keys(CONFIGURATIONS)
    CONFIG = checked_configuration(
        config, read_schema(ROOT / "workflow" / "schemas" / "config.schema.yaml")
    )
except ConfigurationError as error:
    raise WorkflowError(
        f"The configuration cannot be run:\n{error}\nIt was read from"
        f" {', '.join(map(str, CONFIGURATIONS)) or 'no file'}."
    ) from None
config.update(CONFIG)  # what scripts see: device, compile, data_mirror, figures

CELLS = {spec.cell: spec for spec in run_specs(CONFIG)}
MEASUREMENTS = {plan.name: plan for plan in measurement_plans(CONFIG)}
CAPTURES = {plan.name: plan for plan in capture_plans(CONFIG)}
BYTE_BOOKS = byte_book_specs(CONFIG)
# A step of each model that is a class.
CLASS_MODELS = class_model_specs(CONFIG)
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
]
METHODS = [spec.method for plan in MEASUREMENTS.values() for spec in plan.specs]
FIGURES = [
    *(["accuracy_memory", "training_curves"] if CELLS else []),
    "boundaries",
    *(
        ["memory_block_size", "epoch_time_block_size"]
        if blocks_are_measured(MEASUREMENTS.values())
        else []
    ),
    *(["pareto"] if methods_compete(MEASUREMENTS.values()) else []),
    *(["scaling"] if sizes_vary(MEASUREMENTS.values()) else []),
    *(["ablation"] if any(method.without for method in METHODS) else []),
    *(["position_histograms", "quantile_quantile"] if CAPTURES else []),
    *(["bit_search", "bit_front", "bit_drops"] if FEATURES else []),
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
    class_model=one_of(CLASS_MODELS),
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


def sources_with_class(rule, model):
    """The same, and the file of a class, unless it is installed."""
    file = file_of_class(model.layer) if model.is_class else None
    return [*sources(rule), *([os.path.relpath(file)] if file else [])]


def checked_model(model):
    """What says that a class takes a step; layers that are built here need none."""
    return f"<results>/models/{model.name}.txt" if model.is_class else []


def tables(names):
    """Each table comes as Markdown, to read, and as CSV."""
    return [f"{name}.{ending}" for name in names for ending in ("md", "csv")]


def graph_file(graph):
    """A graph of the user's own belongs to the run that says which file it is."""
    folder = "<results>" if graph in CONFIG["graphs"] else "resources"
    return f"{folder}/graphs/{graph}.npz"


def boundaries_file(*specs):
    """The solver's table, if one of the runs takes its bin edges from there."""
    needed = any(spec.method.needs_boundaries for spec in specs)
    return "<results>/boundaries.nc" if needed else []
