"""Graphs that a configuration brings along: their names, and what a schema cannot say.

A sweep may name them beside the graphs that the pipeline knows. So the schema is
extended by their names before a configuration is held against it, and a wrong name is
answered with all that are right.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline_src.configuration.schemas import shown
from pipeline_src.graphs.own.given import GivenGraph, problems_of_place


def with_own_graphs(schema: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """A copy of the schema in which graphs may be those of the configuration too."""
    extended = copy.deepcopy(dict(schema))
    own = config.get("graphs") if isinstance(config, Mapping) else None
    if isinstance(own, Mapping):
        known = extended["$defs"]["graphs"]["items"]["enum"]
        known += [name for name in own if isinstance(name, str) and name not in known]
    return extended


def problems_of_own_graphs(
    config: Mapping[str, Any], schema: Mapping[str, Any]
) -> Iterator[str]:
    """One line for each graph whose name, file or split cannot be.

    Args:
        config: valid by the schema, defaults filled in.
        schema: without the names of the configuration's own graphs.
    """
    known = schema["$defs"]["graphs"]["items"]["enum"]
    for name, entry in config["graphs"].items():
        path = f"graphs.{name}"
        if name in known:
            yield (
                f"{path}: expected a name of its own, because {name} is a graph that "
                "the pipeline knows; call it otherwise"
            )
        for problem in problems_of_place(GivenGraph.from_params(entry)):
            yield f"{path}.path: {problem}"
        if entry["split"] is not None:
            yield from _problems_of_split(entry["split"], f"{path}.split")


def _problems_of_split(split: Mapping[str, Any], path: str) -> Iterator[str]:
    shares = [split[key] for key in ("train", "val") if split[key] is not None]
    if len(shares) == 1:
        missing = "val" if split["val"] is None else "train"
        yield f"{path}.{missing}: is missing; train and val go together"
    elif shares and split["column"] is not None:
        yield (
            f"{path}.column: means nothing with train and val, which make a split of "
            f"their own; got {split['column']}, leave one of them out"
        )
    elif not shares and split["column"] is None:
        yield (
            f"{path}: expected shares for train and val, or the column of the file's "
            f"masks, got {shown(dict(split))}"
        )
    elif not shares and split["seed"]:
        yield (
            f"{path}.seed: means nothing with column, where nothing is drawn; got "
            f"{split['seed']}, leave it out"
        )
    if sum(shares) >= 1:
        yield (
            f"{path}: expected train + val below 1, because the rest tests, got "
            f"{sum(shares)}"
        )
