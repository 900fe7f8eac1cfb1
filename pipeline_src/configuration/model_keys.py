"""What a model's keys mean together: a kind of layers, or a class."""

import importlib.util
import json
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from pipeline_src.configuration.schemas import shown
from pipeline_src.training.spec import METHODS_OF_CLASSES

_OF_LAYERS = ("layer", "num_layers", "hidden")  # needed; what follows has defaults
_WITH_DEFAULTS = ("dropout", "batch_norm")
_OF_CLASSES = ("arguments", "input")
# Sections whose entries name models, and no class among them.
_WITHOUT_CLASSES = {
    "captures": "activations are captured from networks of the policy exact",
    "byte_books": "bytes of a class are measured, not counted from shapes",
    "activation_searches": "settings are searched for the policies exact and lean",
}


def problems_of_models(models: Mapping[str, Any], schema: Any) -> Iterator[str]:
    """One line for each key that goes with another, or is missing."""
    keys = schema["$defs"]["model"]["properties"]
    for name, model in models.items():
        path = f"models.{name}"
        if (class_name := model.get("class")) is None:
            for key in _OF_LAYERS:
                if key not in model:
                    yield f"{path}.{key}: is missing; or name a class in its place"
            others: tuple[str, ...] = _OF_CLASSES
        else:
            others = _OF_LAYERS + _WITH_DEFAULTS
            root = class_name.split(".")[0]
            if _spec_of(root) is None:
                yield (
                    f"{path}.class: expected a module that can be imported, got "
                    f"{shown(class_name)}: there is no {root}; install it, or put its "
                    "folder on PYTHONPATH"
                )
            if not _is_plain(model.get("arguments", {})):
                yield (
                    f"{path}.arguments: expected numbers, text, true, false, null and "
                    f"lists and mappings of them, got {shown(model['arguments'])}"
                )
        for key in others:
            if key in model and model[key] != keys[key].get("default"):
                says = "beside a class" if class_name else "without a class"
                yield f"{path}.{key}: means nothing {says}; leave it out"


def problems_of_classes(config: Mapping[str, Any]) -> Iterator[str]:
    """One line for each place where a class meets what cannot train it."""
    classes = {name for name, of in config["models"].items() if of.get("class")}
    for section in ("sweeps", "measurements", *_WITHOUT_CLASSES):
        for index, entry in enumerate(config[section]):
            found = sorted(classes & set(entry["models"]))
            path = f"{section}[{index}]"
            if found and section in _WITHOUT_CLASSES:
                yield (
                    f"{path}.models: {shown(found[0])} is a class, and "
                    + (_WITHOUT_CLASSES[section])
                )
                continue
            for name in entry.get("methods", []) if found else []:
                method = config["methods"][name]
                kind = (method["policy"], method["technique"])
                if kind not in METHODS_OF_CLASSES:
                    yield (
                        f"{path}.methods: {shown(name)} cannot train the class "
                        f"{shown(found[0])}: full and compress can, and pyg with "
                        "technique eager or autocast; make an entry of its own for it"
                    )
                elif kind[1] == "autocast" and (matrix := _of_a_matrix(config, found)):
                    yield (
                        f"{path}.methods: {shown(name)} is bfloat16, in which PyTorch "
                        f"multiplies no matrix such as {shown(matrix)} takes; say "
                        "input: edges"
                    )


def file_of_class(class_name: str) -> Path | None:
    """The file of the module that a class is named in, found without importing it.

    None for what is installed, whose version is in the records, and for what cannot be
    found. What that file imports lies in files of its own.
    """
    root, *others = class_name.split(".")[:-1]
    spec = _spec_of(root)
    if spec is None or spec.origin is None or "site-packages" in spec.origin:
        return None
    file = Path(spec.origin)
    for name in others:
        below = file.parent / name
        file = below / "__init__.py" if below.is_dir() else below.with_suffix(".py")
    return file if file.is_file() else None


def _spec_of(root: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(root)
    except ValueError:  # of what is no file, as __main__
        return None


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _of_a_matrix(config: Mapping[str, Any], names: list[str]) -> str | None:
    return next((n for n in names if config["models"][n]["input"] == "matrix"), None)
