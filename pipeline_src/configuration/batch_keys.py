"""What the keys of mini-batches mean together, and what trains in them."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline_src.configuration.schemas import shown
from pipeline_src.training.spec import KEYS_OF_LOADER

# Compiled once for each shape, and batches have as many shapes as there are batches.
_COMPILED = ("compiled", "budget")
_ALWAYS = ("loader", "batch_size")


def problems_of_batches(config: Mapping[str, Any]) -> Iterator[str]:
    """One line for each key that a loader lacks or does not know, and each method."""
    for index, sweep in enumerate(config["sweeps"]):
        if (batches := sweep["training"]["batches"]) is None:
            continue
        path = f"sweeps[{index}]"
        loader, own = batches["loader"], KEYS_OF_LOADER[batches["loader"]]
        for key, value in batches.items():
            here = f"{path}.training.batches.{key}"
            if value is None and key in own:
                yield f"{here}: is missing; loader {loader} is told {', '.join(own)}"
            elif value is not None and key not in (*_ALWAYS, *own):
                yield f"{here}: means nothing with loader {loader}; leave it out"
        parts = batches["num_parts"]
        if parts is not None and batches["batch_size"] > parts:
            yield (
                f"{path}.training.batches.batch_size: expected at most num_parts, "
                f"{parts}; got {batches['batch_size']}"
            )
        yield from _problems_of_hops(config, sweep, path)
        for name in sweep["methods"]:
            method = config["methods"][name]
            if method["policy"] == "pyg" and method["technique"] in _COMPILED:
                yield (
                    f"{path}.methods: {shown(name)} is compiled anew for each shape of "
                    "a batch, and cannot train in batches; the policies full, exact, "
                    "lean and compress can, and pyg with another technique"
                )


def _problems_of_hops(
    config: Mapping[str, Any], sweep: Mapping[str, Any], path: str
) -> Iterator[str]:
    """A hop for each layer; how many layers a class has, nobody here knows."""
    hops = sweep["training"]["batches"]["num_neighbors"]
    for name in sweep["models"]:
        layers = config["models"][name].get("num_layers")
        if hops and layers and len(hops) != layers:
            yield (
                f"{path}.training.batches.num_neighbors: expected a number for each of "
                f"the {layers} layers of {shown(name)}, got {len(hops)}"
            )
