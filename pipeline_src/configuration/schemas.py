"""What a JSON schema says of a value, in sentences a user can act on.

`jsonschema` decides; this module turns each of its findings into one line with the
key's path, what was expected and what came, fills in defaults, and prints the keys
as a table. It knows no key of any particular schema.

    >>> schema = {"type": "object", "additionalProperties": False,
    ...           "properties": {"epochs": {"type": "integer", "minimum": 1}}}
    >>> problems({"epoch": 3}, schema)
    ["epoch: unknown key; did you mean 'epochs'?"]
    >>> problems({"epochs": 0.5}, schema)
    ['epochs: expected an integer at least 1, got 0.5']
"""

import copy
import difflib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import yaml

MAX_CHOICES = 20  # named in one message
MAX_INTEGER_BITS = 64  # Python refuses to print integers of many digits
TYPE_WORDS = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "a mapping",
    "string": "text",
}


def problems(value: Any, schema: Mapping[str, Any]) -> list[str]:
    """One line for each breach of the schema, in the order of the paths."""
    if odd := _oddity(value, ""):
        return [odd]
    checker = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, number: type(number) is int,
            "number": lambda _, number: (
                type(number) in (int, float) and math.isfinite(number)
            ),
        }
    )
    validator = jsonschema.validators.extend(
        jsonschema.Draft202012Validator, type_checker=checker
    )(schema)
    lines = [
        line
        for error in sorted(validator.iter_errors(value), key=lambda e: e.json_path)
        for line in _lines(error)
    ]
    return list(dict.fromkeys(lines))


def fill_defaults(value: Any, schema: Mapping[str, Any]) -> None:
    """Put the schema's defaults into a value that is known to be valid, in place."""
    _fill_defaults(value, schema, schema)


def describe_keys(schema: Mapping[str, Any]) -> str:
    """The schema's keys as a Markdown table, for the documentation."""
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for path, key in _walk(schema, schema, ""):
        default = "needed" if key["required"] else "none"
        if "default" in key:
            default = f"`{_yaml(key['default'])}`"
        unit = f" ({key['unit']})" if "unit" in key else ""
        rows.append(
            f"| `{path}` | {_expected(key)}{unit} | {default} | {key['description']} |"
        )
    return "\n".join(rows) + "\n"


def remedy(name: str, known: list[str]) -> str:
    """The known name that is nearest, or all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if near:
        return f"did you mean {near[0]!r}?"
    more = ", ..." if len(known) > MAX_CHOICES else ""
    allowed = ", ".join(map(_word, known[:MAX_CHOICES]))
    return f"allowed: {allowed}{more}" if known else "there are none"


def shown(value: Any) -> str:
    """The value as YAML would show it, cut where it gets long."""
    try:
        text = repr(value) if isinstance(value, str) else _yaml(value)
    except (ValueError, yaml.YAMLError):  # too many digits, or nothing YAML knows
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _lines(error: jsonschema.ValidationError) -> Iterator[str]:
    path = _path(error.absolute_path)
    got = shown(error.instance)
    match error.validator:
        case "additionalProperties":
            known = sorted(error.schema.get("properties", {}))
            for key in sorted(set(error.instance) - set(known)):
                yield f"{_join(path, key)}: unknown key; {remedy(key, known)}"
        case "required":
            for key in sorted(set(error.validator_value) - set(error.instance)):
                yield f"{_join(path, key)}: is missing and has no default"
        case "enum":
            allowed = [_yaml(choice) for choice in error.validator_value]
            yield f"{path}: got {got}; allowed: {', '.join(allowed)}"
        case "type":
            yield f"{path}: expected {_expected(error.schema)}, got {got}{_hint(error)}"
        case "maxLength":
            longest = error.validator_value
            yield f"{path}: expected at most {longest} characters, got {got}"
        case "minItems":
            yield f"{path}: expected at least {error.validator_value} entry, got none"
        case "uniqueItems":
            yield f"{path}: expected each entry once, got {got}"
        case "pattern" if error.schema.get("pattern") == r"\S":
            yield f"{path}: expected text that is not empty, got {got}"
        case "pattern":
            where, sign = path or "name", "hyphens"
            example = "block64-vm"
            if "_" in error.validator_value:
                sign, example = "underscores", "my_graph"
            yield (
                f"{where}: expected lower-case letters, digits and {sign} between "
                f"them (such as {example}), got {got}"
            )
        case _:
            yield f"{path}: expected {_expected(error.schema)}, got {got}"


def _expected(key: Mapping[str, Any]) -> str:
    """What a key of the schema takes, in words."""
    if "enum" in key:
        return ", ".join(f"`{_yaml(choice)}`" for choice in key["enum"])
    if "enum" in key.get("items", {}):
        return "a list of " + _expected(key["items"])
    types = key.get("type", "string")
    words = " or ".join(
        TYPE_WORDS[t] for t in ([types] if type(types) is str else types)
    )
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
        "multipleOf": "a multiple of",
    }
    limits = [f"{text} {key[bound]}" for bound, text in bounds.items() if bound in key]
    return " ".join([words, " and ".join(limits)]).strip()


def _hint(error: jsonschema.ValidationError) -> str:
    """Why a number may have arrived as text: YAML 1.1 reads 1e-2 as text."""
    types = str(error.validator_value)
    if isinstance(error.instance, str) and ("number" in types or "integer" in types):
        try:
            number = float(error.instance)
        except ValueError:
            return ""
        if "e" in error.instance.lower() and math.isfinite(number):
            return f" (YAML reads that as text; write {number!r})"
        return " (text; without the quotes it is a number)"
    return ""


def _oddity(value: Any, path: str) -> str:
    """The first thing that YAML allows and jsonschema cannot even print."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                return f"{path or 'top level'}: keys are text, got {shown(key)}"
            if odd := _oddity(item, _join(path, key)):
                return odd
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if odd := _oddity(item, f"{path}[{index}]"):
                return odd
    elif isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        return (
            f"{path or 'top level'}: expected an integer of at most "
            f"{MAX_INTEGER_BITS} bits, got one of {value.bit_length()}"
        )
    return ""


def _fill_defaults(value: Any, key: Any, schema: Mapping[str, Any]) -> None:
    key = _resolved(key, schema)
    if isinstance(value, dict):
        for name, child in key.get("properties", {}).items():
            child = _resolved(child, schema)
            if "default" in child:
                value.setdefault(name, copy.deepcopy(child["default"]))
        for name, item in value.items():
            child = key.get("properties", {}).get(name, key.get("additionalProperties"))
            _fill_defaults(item, child or {}, schema)
    elif isinstance(value, list):
        for item in value:
            _fill_defaults(item, key.get("items", {}), schema)


def _resolved(key: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The key itself, where it refers to another place of the schema."""
    if "$ref" not in key:
        return key
    target: Any = schema
    for name in key["$ref"].removeprefix("#/").split("/"):
        target = target[name]
    return {
        **_resolved(target, schema),
        **{k: v for k, v in key.items() if k != "$ref"},
    }


def _walk(
    key: Mapping[str, Any], schema: Mapping[str, Any], path: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, child in key["properties"].items():
        child = _resolved(child, schema)
        below = _join(path, name)
        yield below, {**child, "required": name in key.get("required", ())}
        if isinstance(child.get("additionalProperties"), dict):
            below += ".<name>"
            child = _resolved(child["additionalProperties"], schema)
        elif child.get("type") == "array":
            below += "[]"
            child = _resolved(child["items"], schema)
        if "properties" in child:
            yield from _walk(child, schema, below)


def _path(parts: Any) -> str:
    path = ""
    for part in parts:
        path = f"{path}[{part}]" if isinstance(part, int) else _join(path, part)
    return path


def _join(path: str, key: str) -> str:
    return f"{path}.{_word(key)}" if path else _word(key)


def _word(key: str) -> str:
    """The key as it stands; in quotes, with escapes, if it could tear a line apart."""
    return key if re.fullmatch(r"[\w-]{1,60}", key) else shown(key)


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    return re.sub(r"\s+", " ", text.removesuffix("...\n")).strip()
