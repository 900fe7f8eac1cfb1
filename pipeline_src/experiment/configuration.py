"""Checks a configuration before anything runs, and says in a line what is wrong.

The JSON schema in `workflow/schemas` is the only list of keys. What a schema cannot
say is added here: names must exist, the keys of compression mean nothing for a run
that keeps everything, no run may be counted twice. Every message gives the key's
path, what was expected and what came.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline_src.experiment.plans import capture_plans, measurement_plans, run_specs
from pipeline_src.experiment.schemas import fill_defaults, problems, remedy, shown
from pipeline_src.experiment.spec import MAX_BLOCK_SIZE

# What a method with policy full stands for: these keys may say nothing else.
NOT_COMPRESSED = {
    "bits": 32,
    "projection_ratio": 1,
    "rows_per_block": 1,
    "boundaries": "even",
    "max_block_size": MAX_BLOCK_SIZE,
}


LEAN_BITS = (2, 4, 8)  # one bit tells the side of ReLU, the others round


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
    _refuse(list(_problems_of_methods(filled["methods"])))
    fill_defaults(filled, schema)
    for method in filled["methods"].values():
        if method["policy"] == "full":
            method.update(NOT_COMPRESSED)
    filled["compile"] = str(filled["compile"]).lower()
    _refuse(list(_problems_of_names(filled)))
    for plan in (run_specs, measurement_plans, capture_plans):
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


def _problems_of_methods(methods: Mapping[str, Any]) -> Iterator[str]:
    for name, method in methods.items():
        path = f"methods.{name}"
        if method["policy"] == "full":
            for key, value in NOT_COMPRESSED.items():
                if method.get(key, value) != value:
                    yield (
                        f"{path}.{key}: means nothing with policy full, which keeps "
                        f"everything; got {shown(method[key])}, leave it out"
                    )
        elif method["policy"] == "lean":
            yield from _problems_of_lean(method, path)
        elif "bits" not in method:
            yield f"{path}.bits: is missing; policy exact needs 1, 2, 4, 8 or 32"
        elif method.get("boundaries") == "clipped_normal" and method["bits"] in (1, 32):
            yield (
                f"{path}.boundaries: clipped_normal moves the inner bin edges, and "
                f"{method['bits']} bits have none; take 2, 4 or 8 bits, or even"
            )


def _problems_of_lean(method: Mapping[str, Any], path: str) -> Iterator[str]:
    bits, rows = method.get("bits"), method.get("rows_per_block", 1)
    if bits not in LEAN_BITS:
        yield f"{path}.bits: policy lean needs one of {LEAN_BITS}, got {shown(bits)}"
    elif rows % (8 // bits):
        yield (
            f"{path}.rows_per_block: expected a multiple of {8 // bits}, because a "
            f"byte holds the {bits}-bit codes of as many rows; got {rows}"
        )
    for key in ("projection_ratio", "boundaries", "max_block_size"):
        if method.get(key, NOT_COMPRESSED[key]) != NOT_COMPRESSED[key]:
            yield (
                f"{path}.{key}: means nothing with policy lean; "
                f"got {shown(method[key])}, leave it out"
            )


def _problems_of_names(config: Mapping[str, Any]) -> Iterator[str]:
    for section in ("sweeps", "measurements", "captures"):
        for index, entry in enumerate(config[section]):
            path = f"{section}[{index}]"
            for kind in ("models", "methods"):
                for name in entry.get(kind, ()):
                    yield from _unknown(name, config[kind], kind, f"{path}.{kind}")
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


def _unknown(name: str, known: Any, kind: str, path: str) -> Iterator[str]:
    if name not in known:
        advice = remedy(name, sorted(known))
        yield f"{path}: {name!r} is not among the {kind}; {advice}"
