"""What a schema cannot say of searches for settings of activation compression."""

from collections.abc import Iterator, Mapping
from typing import Any

TOO_MANY_TO_PRINT = 10**12
MAX_SETTINGS = 5000  # whose bytes are counted, or measured, before the first round


def problems_of_activation_searches(config: Mapping[str, Any]) -> Iterator[str]:
    """One line for each problem, with the key's path and the way out."""
    for index, entry in enumerate(config["activation_searches"]):
        path = f"activation_searches[{index}]"
        if entry["max_drop"] is None and entry["max_memory"] is None:
            yield f"{path}: expected max_drop or max_memory or both, got null for both"
        yield from _problems_of_rows(entry, path)
        for name in entry["models"]:
            # Classes have no such key, and are refused with all others.
            if layers := config["models"].get(name, {}).get("num_layers"):
                yield from _problems_of_size(entry, layers, name, path)
        for name in entry["methods"]:
            if config["methods"].get(name, {}).get("policy") == "full":
                yield (
                    f"{path}.methods: {name!r} is full precision, which is measured"
                    " anyway; leave it out"
                )


def _problems_of_rows(entry: Mapping[str, Any], path: str) -> Iterator[str]:
    together = 8 // min(entry["bits"])
    for rows in entry["rows_per_block"]:
        if "lean" in entry["policies"] and rows % together:
            yield (
                f"{path}.rows_per_block: expected multiples of {together}, because"
                f" under lean a byte holds the {min(entry['bits'])}-bit codes of as"
                f" many rows; got {rows}"
            )


def _problems_of_size(
    entry: Mapping[str, Any], num_layers: int, name: str, path: str
) -> Iterator[str]:
    if num_layers < 2:
        yield f"{path}.models: {name!r} has no hidden layer that could be compressed"
        return
    num_layouts = sum(
        len(entry["projection_ratios"]) if policy == "exact" else 1
        for policy in entry["policies"]
    )
    num_settings = (num_layouts * len(entry["bits"]) ** (num_layers - 1)) * len(
        entry["rows_per_block"]
    )
    if num_settings > MAX_SETTINGS:
        count = str(num_settings) if num_settings < TOO_MANY_TO_PRINT else "far more"
        yield (
            f"{path}: expected at most {MAX_SETTINGS} settings to select from, got"
            f" {count} for {name!r}; list fewer bits, rows_per_block or"
            " projection_ratios"
        )
