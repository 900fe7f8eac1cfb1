"""Settings of activation compression as configurations of a search.

Variables, each from the most compressed to the least:

    layout            lean, then exact with each projection ratio (exact 8, exact 4, ..)
    bits of layer h   for hidden layers h = 1, 2, ...; what lies behind one has its bits
    rows per block    rows that share one zero point and scale

Policy and projection ratio are one variable, because a ratio means nothing under lean:
else one method would be several configurations, and be measured as often. Which layout
is better for accuracy is not known beforehand, so that variable is not ordered.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace

import xarray as xr

from pipeline_src.search.space import (
    Configuration,
    SearchSpace,
    Value,
    Variable,
)
from pipeline_src.settings.plans import ActivationSearch
from pipeline_src.training.spec import MethodSpec

LAYOUT, ROWS = "layout", "rows per block"


def variables(search: ActivationSearch, num_nodes: int) -> tuple[Variable, ...]:
    """What a setting consists of; bits weigh as much as a hidden layer has values."""
    model = search.run.model
    widths = tuple(sorted(search.bits))
    values = float(num_nodes * model.hidden)
    return (
        Variable(LAYOUT, search.layouts, ordered=False),
        *(
            Variable(_bits_name(layer), widths, values)
            for layer in range(1, model.num_layers)
        ),
        Variable(ROWS, tuple(sorted(search.rows_per_block, reverse=True))),
    )


def all_settings(search: ActivationSearch) -> list[dict[str, Value]]:
    """Every configuration."""
    parts = variables(search, num_nodes=1)
    return [
        {one.name: value for one, value in zip(parts, values, strict=True)}
        for values in itertools.product(*(one.values for one in parts))
    ]


def search_space(
    search: ActivationSearch, num_nodes: int, memory: Mapping[str, float]
) -> SearchSpace:
    """The space, with memory in bytes by the text of each configuration."""
    return SearchSpace(
        variables(search, num_nodes),
        lambda configuration: memory[setting_text(configuration)],
    )


def setting_text(configuration: Configuration) -> str:
    """JSON text of a configuration, with variables in alphabetical order."""
    return json.dumps(dict(configuration), sort_keys=True)


def waiting_settings(archives: xr.Dataset) -> list[dict[str, Value]]:
    """Configurations that a round's archives wait for, each once, as first proposed.

    What another search has measured before is not waited for.
    """
    known = known_accuracies(archives)
    waiting = {
        setting_text(setting): setting
        for setting in map(json.loads, archives["configuration"].values.tolist())
    }
    return [setting for text, setting in waiting.items() if text not in known]


def known_accuracies(archives: xr.Dataset) -> dict[str, float]:
    """Measured accuracies by the text of the configuration."""
    rows = zip(
        archives["configuration"].values.tolist(),
        archives["accuracy"].values.tolist(),
        strict=True,
    )
    return {
        setting_text(json.loads(text)): accuracy
        for text, accuracy in rows
        if not math.isnan(accuracy)
    }


def method_of(search: ActivationSearch, configuration: Configuration) -> MethodSpec:
    """What training is told to keep."""
    policy, _, ratio = str(configuration[LAYOUT]).partition(" ")
    layers = range(1, search.run.model.num_layers)
    bits = tuple(int(configuration[_bits_name(layer)]) for layer in layers)
    alike = len(set(bits)) == 1
    method = MethodSpec(
        name="",
        label="",
        policy=policy,
        bits=bits[0] if alike else 32,
        projection_ratio=int(ratio or 1),
        rows_per_block=int(configuration[ROWS]),
        # The codes of lean have no fixed edges.
        boundaries="even" if policy == "lean" else search.boundaries,
        layer_bits=() if alike else bits,
    )
    label = describe_method(method)
    name = "-".join(re.findall(r"[a-z0-9]+", label.lower()))
    return replace(method, name=name, label=label)


def describe_method(method: MethodSpec) -> str:
    """What a method keeps, for a table.

    >>> lean = MethodSpec("", "", "lean", rows_per_block=8, layer_bits=(4, 2))
    >>> describe_method(lean)
    'lean, 4 and 2 bits, 8 rows'
    >>> describe_method(MethodSpec("", "", "exact", 1, 8))
    'exact, 1 bit, D/R 8, 1 row'
    """
    if method.policy not in ("lean", "exact"):
        return method.policy
    widths = method.layer_bits or (method.bits,)
    parts = [
        method.policy,
        f"{' and '.join(map(str, widths))} bit{'s' * (widths != (1,))}",
        *([f"D/R {method.projection_ratio}"] * (method.policy == "exact")),
        f"{method.rows_per_block} row{'s' * (method.rows_per_block > 1)}",
        *(["VM"] * method.needs_boundaries),
    ]
    return ", ".join(parts)


def _bits_name(layer: int) -> str:
    return f"bits of layer {layer}"
