"""What a YAML or JSON reader gives, as plain dicts and lists of bounded size.

YAML knows aliases: a few lines can mean a value that contains itself, or one larger
than any memory. Both end here, before anything walks through them.

    >>> plain_values({"a": (1, 2)})
    {'a': [1, 2]}
    >>> endless = {}
    >>> endless["a"] = endless
    >>> plain_values(endless)
    Traceback (most recent call last):
      ...
    ValueError: top level: expected at most 12 levels below each other, got more
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

MAX_DEPTH = 12  # the schema's keys lie 5 deep
MAX_VALUES = 10_000  # the longest shipped configuration has some 500


def plain_values(value: Any) -> Any:
    """A copy in dicts and lists, whatever the reader's own mappings are.

    Raises:
        ValueError: if it is deeper or larger than a configuration is.
    """
    return _copy(value, MAX_DEPTH, iter(range(MAX_VALUES)))


def repeated_keys(path: str | Path) -> list[str]:
    """One line for each key that a mapping of the file gives twice.

    Readers keep the last of them and say nothing. The text is taken apart and nothing
    is built from it, so no tag in it means anything.
    """
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
    except yaml.YAMLError:  # JSON with tabs, which is no YAML
        return []
    return [f"{path}, {line}" for line in _repeated(root, set())]


def _copy(value: Any, depth: int, budget: Iterator[int]) -> Any:
    if next(budget, None) is None:
        raise ValueError(f"top level: expected at most {MAX_VALUES} values, got more")
    if not isinstance(value, Mapping | list | tuple):
        return value
    if not depth:
        raise ValueError(
            f"top level: expected at most {MAX_DEPTH} levels below each other, got more"
        )
    if isinstance(value, Mapping):
        return {key: _copy(item, depth - 1, budget) for key, item in value.items()}
    return [_copy(item, depth - 1, budget) for item in value]


def _repeated(node: yaml.Node | None, seen: set[int]) -> Iterator[str]:
    if id(node) in seen:  # an alias, which may lead back here
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, item in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                yield f"line {line}: {name!r} is given in line {lines[name]} already"
            lines.setdefault(name, line)
            yield from _repeated(item, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, seen)
