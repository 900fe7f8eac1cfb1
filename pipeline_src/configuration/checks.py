"""Checks a configuration before anything runs, and says in a line what is wrong.

The JSON schema in `workflow/schemas` is the only list of keys. What a schema cannot
say is added here: names must exist, the keys of compression mean nothing for a run
that keeps everything, no run may be counted twice. Every message gives the key's
path, what was expected and what came.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline_src.configuration.batch_keys import problems_of_batches
from pipeline_src.configuration.method_keys import NOT_COMPRESSED, problems_of_methods
from pipeline_src.configuration.model_keys import (
    problems_of_classes,
    problems_of_models,
)
from pipeline_src.configuration.own_graphs import (
    problems_of_own_graphs,
    with_own_graphs,
)
from pipeline_src.configuration.plain_values import plain_values, repeated_keys
from pipeline_src.configuration.plans import (
    byte_book_specs,
    capture_plans,
    measurement_plans,
    run_specs,
)
from pipeline_src.configuration.schemas import fill_defaults, problems, remedy, shown
from pipeline_src.features.plans import feature_plans
from pipeline_src.graphs.fetching import mirror_place
from pipeline_src.settings.checks import (
    problems_of_activation_searches,
)
from pipeline_src.settings.plans import activation_plans

MAX_JOBS = 20_000  # of one section; more is a slip of the pen, and fills the memory
MAX_LINES = 20  # of one message: a screen
# The folder beside the runs' own that git keeps; a run of this name would write there.
RESERVED_RUN = "published"
_SECTIONS = (  # whose entries name models and methods
    "sweeps",
    "measurements",
    "captures",
    "byte_books",
    "activation_searches",
)
_LISTS = ("graphs", "models", "methods")  # of an entry, which asks for their product


class ConfigurationError(ValueError):
    """A configuration that cannot be run; one line for each problem."""


def read_schema(path: str | Path) -> dict[str, Any]:
    """The schema that lists the configuration's keys."""
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def checked_configuration(
    config: Mapping[str, Any], schema: Mapping[str, Any]
) -> dict[str, Any]:
    """A copy of `config` with every default filled in.

    Checking the result once more changes nothing, so a job on another machine may
    check again what the first machine checked.

    Raises:
        ConfigurationError: if anything is wrong, with a line for each problem.
    """
    try:
        filled = plain_values(config)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    if not isinstance(filled, dict):
        _refuse([f"top level: expected a mapping, got {shown(filled)}"])
    # On the command line `--config compile=false` may arrive as text.
    if isinstance(word := filled.get("compile"), str):
        filled["compile"] = {"true": True, "false": False}.get(word.lower(), word)
    _refuse(problems(filled, with_own_graphs(schema, filled)))
    _refuse(list(_problems_of_text(filled)))
    _refuse(list(problems_of_methods(filled["methods"], schema)))
    _refuse(list(problems_of_models(filled["models"], schema)))
    fill_defaults(filled, schema)
    for method in filled["methods"].values():
        method.setdefault("bits", NOT_COMPRESSED)
    filled["compile"] = str(filled["compile"]).lower()
    _refuse(list(problems_of_own_graphs(filled, schema)))
    _refuse(list(_problems_of_names(filled)))
    _refuse(list(problems_of_classes(filled)))
    _refuse(list(problems_of_batches(filled)))
    _refuse(list(_problems_of_size(filled)))
    plans: tuple[Callable[[dict[str, Any]], object], ...]
    plans = (run_specs, measurement_plans, capture_plans, byte_book_specs)
    for plan in (*plans, feature_plans, activation_plans):
        try:
            plan(filled)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
    return filled


def refuse_repeated_keys(paths: Iterable[str | Path]) -> None:
    """Refuse configuration files in which a mapping gives a key twice.

    Raises:
        ConfigurationError: with a line for each, naming file and lines.
    """
    _refuse([line for path in paths for line in repeated_keys(path)])


def _refuse(lines: list[str]) -> None:
    if len(lines) > MAX_LINES:
        more = len(lines) - MAX_LINES
        lines = [*lines[:MAX_LINES], f"and {more} more"]
    if lines:
        raise ConfigurationError("\n".join(lines))


def _problems_of_text(config: Mapping[str, Any]) -> Iterator[str]:
    """Text that ends up in names of files, in tables and in figures."""
    if config["run"] == RESERVED_RUN:
        yield (
            f"run: expected another name than {RESERVED_RUN!r}, because "
            f"results/{RESERVED_RUN} holds what was published; got {RESERVED_RUN!r}"
        )
    texts = {
        f"methods.{name}.label": method["label"]
        for name, method in config["methods"].items()
    }
    texts |= {
        f"graphs.{name}.path": graph["path"]
        for name, graph in config.get("graphs", {}).items()
    }
    for path, text in {**texts, "data_mirror": config.get("data_mirror")}.items():
        if text is not None and not text.isprintable():
            yield (
                f"{path}: expected one line of characters that can be printed, "
                f"got {shown(text)}"
            )
    if config.get("data_mirror") is not None:
        try:
            mirror_place(config["data_mirror"])
        except ValueError as error:
            yield f"data_mirror: {error}"


def _problems_of_names(config: Mapping[str, Any]) -> Iterator[str]:
    yield from _problems_of_byte_books(config)
    yield from _problems_of_feature_bits(config)
    yield from problems_of_activation_searches(config)
    for section in _SECTIONS:
        for index, entry in enumerate(config[section]):
            path = f"{section}[{index}]"
            for kind in ("models", "methods"):
                for name in entry.get(kind, ()):
                    yield from _unknown(name, config[kind], kind, f"{path}.{kind}")
            yield from _problems_of_layer_bits(config, entry, f"{path}.methods")
            for name in entry.get("timed_methods", ()):
                known = entry["methods"]
                yield from _unknown(
                    name, known, "methods of this entry", f"{path}.timed_methods"
                )
            if "method" in entry:
                name = entry["method"]
                yield from _unknown(
                    name, config["methods"], "methods", f"{path}.method"
                )
                method = config["methods"].get(name, {"policy": "exact", "bits": 1})
                if method["policy"] != "exact" or method["bits"] == NOT_COMPRESSED:
                    yield (
                        f"{path}.method: {name!r} compresses nothing that could be "
                        "observed; take a method with policy exact and 1, 2, 4 or 8 "
                        "bits"
                    )
    yield from _problems_of_labels(config)


def _problems_of_labels(config: Mapping[str, Any]) -> Iterator[str]:
    """Of methods in use: those of the default that are not asked for do not matter."""
    used = {
        name
        for section in _SECTIONS
        for entry in config[section]
        for name in (*entry.get("methods", ()), *filter(None, [entry.get("method")]))
    }
    first: dict[str, str] = {}
    for name, method in config["methods"].items():
        if name in used and (other := first.setdefault(method["label"], name)) != name:
            yield (
                f"methods.{name}.label: expected one of its own, because tables and "
                f"figures know methods by their labels; got {shown(method['label'])}, "
                f"the label of {other!r}"
            )


def _problems_of_size(config: Mapping[str, Any]) -> Iterator[str]:
    """Counted before anything is listed: lists multiply, and so do blocks of seeds."""
    for section in (*_SECTIONS, "feature_bits"):
        jobs = 0
        for entry in config[section]:
            sizes = [len(entry[key]) for key in _LISTS if key in entry]
            blocks = -(-entry.get("seeds", 1) // entry.get("seeds_per_job", 1))
            jobs += math.prod(sizes) * blocks
        if jobs > MAX_JOBS:
            yield (
                f"{section}: expected at most {MAX_JOBS} combinations of graph, model, "
                f"method and block of seeds, got {jobs}; raise seeds_per_job or make "
                "several runs"
            )


def _problems_of_byte_books(config: Mapping[str, Any]) -> Iterator[str]:
    for index, entry in enumerate(config["byte_books"]):
        for name in entry["methods"]:
            method = config["methods"].get(name, {"policy": "full"})
            widths = method.get("layer_bits") or [method.get("bits")]
            if (
                method["policy"] in ("pyg", "compress")
                or method.get("without")
                or (method["policy"] == "lean" and NOT_COMPRESSED in widths)
            ):
                yield (
                    f"byte_books[{index}].methods: {name!r} has no byte book, which "
                    "is there for policies full, exact, and lean with at most 8 bits "
                    "and nothing switched off; list it under measurements"
                )


def _problems_of_feature_bits(config: Mapping[str, Any]) -> Iterator[str]:
    for index, entry in enumerate(config["feature_bits"]):
        path = f"feature_bits[{index}]"
        if NOT_COMPRESSED not in entry["candidate_bits"]:
            yield (
                f"{path}.candidate_bits: expected 32 among them, which meets any "
                f"max_drop; got {shown(entry['candidate_bits'])}"
            )
        known = entry["candidate_bits"]
        if (least := entry["least_attention_bits"]) not in known:
            yield (
                f"{path}.least_attention_bits: expected one of candidate_bits, "
                f"{shown(known)}; got {least}"
            )
        for key in ("uniform_bits", "equal_bits"):
            widths = entry[key] if key == "uniform_bits" else [entry[key]]
            for width in widths:
                if width is not None and width not in known:
                    yield (
                        f"{path}.{key}: expected widths of candidate_bits, "
                        f"{shown(known)}; got {width}"
                    )
        for width in entry["tuned_uniform_bits"]:
            if width not in entry["uniform_bits"]:
                yield (
                    f"{path}.tuned_uniform_bits: expected widths of uniform_bits, "
                    f"{shown(entry['uniform_bits'])}; got {width}"
                )
        if entry["tuned_uniform_bits"] and not entry["fine_tuning_epochs"]:
            yield (
                f"{path}.fine_tuning_epochs: expected at least 1, because "
                "tuned_uniform_bits asks for fine-tuning; got 0"
            )


def _problems_of_layer_bits(
    config: Mapping[str, Any], entry: Mapping[str, Any], path: str
) -> Iterator[str]:
    for name in entry.get("methods", ()):
        given = len(config["methods"].get(name, {}).get("layer_bits", ()))
        for model in entry["models"]:
            layers = config["models"].get(model, {}).get("num_layers")
            if given and layers and given != layers - 1:
                yield (
                    f"{path}: {name!r} has layer_bits for {given} hidden layers, but "
                    f"model {model!r} has {layers - 1}"
                )


def _unknown(name: str, known: Any, kind: str, path: str) -> Iterator[str]:
    if name not in known:
        advice = remedy(name, sorted(known))
        yield f"{path}: {name!r} is not among the {kind}; {advice}"
