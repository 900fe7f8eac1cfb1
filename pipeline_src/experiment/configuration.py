"""Checks a configuration before anything runs, and says in a line what is wrong.

The JSON schema in `workflow/schemas` is the only list of keys. What a schema cannot
say is added here: names must exist, the keys of compression mean nothing for a run
that keeps everything, no run may be counted twice. Every message gives the key's
path, what was expected and what came.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline_src.experiment.feature_plans import feature_plans
from pipeline_src.experiment.plans import (
    byte_book_specs,
    capture_plans,
    measurement_plans,
    run_specs,
)
from pipeline_src.experiment.schemas import fill_defaults, problems, remedy, shown

# Keys of a method that say nothing under the other policies, which refuse them.
KEYS_OF_POLICY = {
    "full": (),
    "exact": (
        "bits",
        "projection_ratio",
        "rows_per_block",
        "boundaries",
        "max_block_size",
    ),
    "lean": (
        "bits",
        "layer_bits",
        "projection_ratio",
        "rows_per_block",
        "boundaries",
        "without",
    ),
    "pyg": ("bits", "technique", "memory_budget"),
}
NOT_COMPRESSED = 32  # bits where the key says nothing
HOOK_BITS = (4, 8)
# Lean without one of these ideas keeps copies that can be projected.
COPYING = ("transposed_aggregation", "resident_input", "rebuilt_input")


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
    filled = _plain(config)
    # On the command line `--config compile=false` may arrive as text.
    filled["compile"] = {"true": True, "false": False}.get(
        str(filled.get("compile", "auto")).lower(), filled.get("compile", "auto")
    )
    _refuse(problems(filled, schema))
    _refuse(list(_problems_of_methods(filled["methods"], schema)))
    fill_defaults(filled, schema)
    for method in filled["methods"].values():
        method.setdefault("bits", NOT_COMPRESSED)
    filled["compile"] = str(filled["compile"]).lower()
    _refuse(list(_problems_of_names(filled)))
    plans: tuple[Callable[[dict[str, Any]], object], ...]
    plans = (run_specs, measurement_plans, capture_plans, byte_book_specs)
    for plan in (*plans, feature_plans):
        try:
            plan(filled)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
    return filled


def _plain(value: Any) -> Any:
    """A copy in dicts and lists, whatever the YAML reader's own mappings are."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _refuse(lines: list[str]) -> None:
    if lines:
        raise ConfigurationError("\n".join(lines))


def _problems_of_methods(methods: Mapping[str, Any], schema: Any) -> Iterator[str]:
    keys = schema["$defs"]["method"]["properties"]
    neutral = {
        key: value["default"] for key, value in keys.items() if "default" in value
    }
    neutral["bits"] = NOT_COMPRESSED
    for name, method in methods.items():
        path, policy = f"methods.{name}", method["policy"]
        for key, value in neutral.items():
            if key not in KEYS_OF_POLICY[policy] and method.get(key, value) != value:
                yield (
                    f"{path}.{key}: means nothing with policy {policy}; "
                    f"got {shown(method[key])}, leave it out"
                )
        if policy == "exact":
            yield from _problems_of_exact(method, path)
        elif policy == "lean":
            yield from _problems_of_lean(method, path)
        elif policy == "pyg":
            yield from _problems_of_pyg(method, path)


def _problems_of_exact(method: Mapping[str, Any], path: str) -> Iterator[str]:
    if "bits" not in method:
        yield f"{path}.bits: is missing; policy exact needs 1, 2, 4, 8 or 32"
    elif method.get("boundaries") == "clipped_normal" and method["bits"] in (1, 32):
        yield (
            f"{path}.boundaries: clipped_normal moves the inner bin edges, and "
            f"{method['bits']} bits have none; take 2, 4 or 8 bits, or even"
        )


def _problems_of_lean(method: Mapping[str, Any], path: str) -> Iterator[str]:
    rows = method.get("rows_per_block", 1)
    widths = method.get("layer_bits") or [method.get("bits")]
    if method.get("layer_bits") and method.get("bits", NOT_COMPRESSED) != 32:
        yield f"{path}.bits: layer_bits says the bits of each layer; leave one out"
    elif widths == [None]:
        yield f"{path}.bits: is missing; policy lean needs 1, 2, 4, 8 or 32"
        return
    for bits in widths:
        if bits < 8 and rows % (8 // bits):
            yield (
                f"{path}.rows_per_block: expected a multiple of {8 // bits}, because a "
                f"byte holds the {bits}-bit codes of as many rows; got {rows}"
            )
    projected = method.get("projection_ratio", 1) != 1
    if projected and not set(method.get("without", ())) & set(COPYING):
        yield (
            f"{path}.projection_ratio: lean keeps nothing that could be projected "
            f"unless `without` names one of {', '.join(COPYING)}"
        )


def _problems_of_pyg(method: Mapping[str, Any], path: str) -> Iterator[str]:
    technique, bits = method.get("technique", "eager"), method.get("bits")
    if technique == "quantized_hooks":
        if bits not in HOOK_BITS:
            yield (
                f"{path}.bits: technique quantized_hooks needs one of {HOOK_BITS}, "
                f"got {shown(bits)}"
            )
    elif bits not in (None, NOT_COMPRESSED):
        yield (
            f"{path}.bits: belongs to technique quantized_hooks, not to {technique}; "
            "leave it out"
        )
    if technique != "budget" and method.get("memory_budget", 1) != 1:
        yield (
            f"{path}.memory_budget: belongs to technique budget, not to {technique}; "
            "leave it out"
        )


def _problems_of_names(config: Mapping[str, Any]) -> Iterator[str]:
    yield from _problems_of_byte_books(config)
    yield from _problems_of_feature_bits(config)
    for section in ("sweeps", "measurements", "captures", "byte_books"):
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
                if config["methods"].get(name, {}).get("bits") == 32:
                    yield (
                        f"{path}.method: {name!r} compresses nothing that could be "
                        "observed; take a method of 1, 2, 4 or 8 bits"
                    )


def _problems_of_byte_books(config: Mapping[str, Any]) -> Iterator[str]:
    for index, entry in enumerate(config["byte_books"]):
        for name in entry["methods"]:
            method = config["methods"].get(name, {"policy": "full"})
            widths = method.get("layer_bits") or [method.get("bits")]
            if (
                method["policy"] == "pyg"
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
