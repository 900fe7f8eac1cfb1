"""Anything at all as a configuration: plans that can be run, or lines that say why not.

Configurations are the shipped ones, or drawn from the schema, and then broken: values
of other types, extreme numbers, hostile text, keys lost, added and repeated. What
comes back is either every plan, with names that stay in their folder, or one
ConfigurationError; never another exception, and never a plan that asks for nonsense.
"""

import copy
import dataclasses
import math
import re
from pathlib import Path, PurePosixPath

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_src.configuration import plans
from pipeline_src.configuration.checks import (
    MAX_JOBS,
    ConfigurationError,
    checked_configuration,
    read_schema,
)
from pipeline_src.features import plans as feature_plans

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = read_schema(ROOT / "workflow" / "schemas" / "config.schema.yaml")
SHIPPED = [
    yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "config").glob("*.yaml"))
]
# path: what was expected; what came. A key that is no word is quoted.
LINE = re.compile(r"\S.*?: \S.*|and \d+ more")


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def endless():
    value = {}
    value["models"] = value
    return value


HOSTILE_TEXT = [
    *("", " ", ".", "..", "../..", "/", "/etc/passwd", "a/b", "a\\b", "~", "$HOME"),
    *("a\n", "a\nb", "\0", "a\0b", "\ud800", "\u202e", "é", "ｆｐ３２", "-", "a--b"),
    *("{graph}", "{wildcards.run}", "*", "?", "[a]", "a|b", "%s", "<results>", "A"),
    *("published", "null", "true", "1e3", "nan", "!!python/name:os.system", "a" * 300),
    *("__use_yte__", "__proto__", "0", "digits", "cora", "fp32", "sage-2x64", "run"),
]
NUMBERS = [
    *(0, -1, 1, 2, 3, 1000, 1001, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, 1.0, 2.0, 32.0, 1e308, -1e308, 5e-324, 1e-320),
    *(math.nan, math.inf, -math.inf),
]
hostile = st.one_of(
    st.sampled_from(HOSTILE_TEXT),
    st.text(max_size=8),
    st.sampled_from(NUMBERS),
    st.sampled_from([None, True, False, [], {}, [[]], [None], b"bytes", (), {1, 2}]),
    st.dates(),
    st.builds(deep, st.sampled_from([1, 30, 100])),
    st.builds(endless),
    st.lists(st.sampled_from(HOSTILE_TEXT + NUMBERS), min_size=1, max_size=3),
    st.dictionaries(
        st.sampled_from(HOSTILE_TEXT) | st.integers() | st.none(),
        st.sampled_from(HOSTILE_TEXT + NUMBERS),
        min_size=1,
        max_size=2,
    ),
)


def drawn(key):
    """Values that the schema admits, and now and then the ends of their range."""
    if "$ref" in key:
        target = SCHEMA
        for name in key["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        return drawn({**target, **{k: v for k, v in key.items() if k != "$ref"}})
    if "enum" in key:
        return st.sampled_from(key["enum"])
    kind = key.get("type")
    if isinstance(kind, list):
        return st.none() | drawn({**key, "type": kind[0]})
    if kind == "object" and "properties" in key:
        needed = key.get("required", [])
        parts = {name: drawn(child) for name, child in key["properties"].items()}
        return st.fixed_dictionaries(
            {name: part for name, part in parts.items() if name in needed},
            optional={n: part for n, part in parts.items() if n not in needed},
        )
    if kind == "object":
        names = st.sampled_from(["a", "b-2", "fp32"])
        return st.dictionaries(names, drawn(key["additionalProperties"]), max_size=3)
    if kind == "array":
        least = key.get("minItems", 0)
        return st.lists(drawn(key["items"]), min_size=least, max_size=2)
    if kind == "boolean":
        return st.booleans()
    if kind == "string":
        return st.sampled_from(["a", "b-2", "fp32", "published"])
    least = key.get("minimum", key.get("exclusiveMinimum", 0))
    most = key.get("maximum", key.get("exclusiveMaximum", 10**9))
    return st.sampled_from([least, most, 1, 2, 4, 32, 0.5])


def places(value, path=()):
    """Every path in a configuration, the root excepted."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def similar(value):
    """Values of the same type, which may be right in another place."""
    match value:
        case bool():
            return st.booleans()
        case int() | float():
            return st.sampled_from([1, 2, 3, 4, 8, 32, 64, 0.01, 0.5])
        case str():
            names = ("digits", "cora", "fp32", "exact", "lean", "sage-2x64", "even")
            return st.sampled_from(names)
        case list():
            return st.permutations(value).map(lambda items: items[:2])
    return st.just(value)


FAULTS = ["replace", "delete", "add", "repeat", "swap", "nudge", "nudge", "nudge"]


@st.composite
def broken(draw):
    """A configuration with one or two faults."""
    config = copy.deepcopy(draw(st.sampled_from(SHIPPED) | drawn(SCHEMA)))
    for _ in range(draw(st.integers(1, 2))):
        sound = list(places(config))
        if not sound:
            break
        *parents, last = draw(st.sampled_from(sound))
        target = config
        for key in parents:
            target = target[key]
        match draw(st.sampled_from(FAULTS)):
            case "replace":
                target[last] = draw(hostile)
                break  # what hangs below may have no end
            case "delete":
                del target[last]
            case "add" if isinstance(target, dict):
                keys = st.sampled_from(HOSTILE_TEXT) | st.integers()
                target |= dict.fromkeys(draw(st.sets(keys, min_size=3, max_size=3)), 1)
            case "nudge":
                target[last] = draw(similar(target[last]))
            case "repeat" if isinstance(target, list):
                target.append(copy.deepcopy(target[last]))
            case _:
                value = config
                for key in draw(st.sampled_from(sound)):
                    if not isinstance(value, dict | list) or (
                        isinstance(value, list) and len(value) <= key
                    ):
                        break
                    value = value.get(key) if isinstance(value, dict) else value[key]
                target[last] = copy.deepcopy(value)
    return config


def check_values(value, kind):
    """Numbers are finite and of the type that the field says."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            check_values(getattr(value, field.name), str(field.type))
    elif isinstance(value, tuple):
        for item in value:
            check_values(item, kind)
    elif value is not None and type(value) is not str:
        words = re.findall("int|float|bool", kind)
        assert type(value).__name__ in words or words == ["float"], (value, kind)
        assert -1e12 < value < 1e12


def check_names(run, names):
    """Distinct names that are files in the run's own folder, on every file system."""
    assert len(set(names)) == len(names)
    for name in names:
        path = PurePosixPath("results", run, "runs", f".{name}.nc.4194304.tmp")
        assert re.fullmatch(r"results/[a-z0-9-]+/runs/\.[a-z0-9_-]+[.\w]+", str(path))
        assert path.parent.parent.parent == PurePosixPath("results")
        assert run != "published", "these files are kept by git"
        assert len(path.name) <= 255


def plans_or_message(config):
    """Every plan after sober checks, or the message after others."""
    try:
        filled = checked_configuration(config, SCHEMA)
    except ConfigurationError as error:
        lines = str(error).split("\n")
        assert 0 < len(lines) <= 21, "a screen"
        for line in lines:
            assert LINE.fullmatch(line), line
            assert line.isprintable(), line
            assert len(line) < 600, line
        return None
    runs = plans.run_specs(filled)
    measured = plans.measurement_plans(filled)
    captured = plans.capture_plans(filled)
    booked = plans.byte_book_specs(filled)
    features = feature_plans.feature_plans(filled)
    for plan in (*runs, *measured, *captured, *booked, *features):
        check_values(plan, "")
    asked = max((sweep["seeds"] for sweep in filled["sweeps"]), default=0)
    assert {seed for spec in runs for seed in spec.seeds} == set(range(asked))
    networks = [
        part.name for plan in features for part in (plan.selection, *plan.blocks)
    ]
    for plan in features:
        fresh = {seed for block in plan.blocks for seed in block.seeds}
        assert not fresh & set(plan.selection.seeds), "measured on what it chose by"
    for names in (
        [spec.cell for spec in runs],
        [plan.name for plan in measured],
        [plan.name for plan in captured],
        [plan.name for plan in features],
        networks,
    ):
        check_names(filled["run"], names)
        assert len(names) <= MAX_JOBS
    return filled


@settings(max_examples=500)
@given(broken())
def test_a_broken_configuration_gives_plans_or_lines(config):
    plans_or_message(config)


SMALL = {"run": "a", "models": {}, "methods": {}, "sweeps": []}


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (endless(), "top level: expected at most 12 levels below each other, got more"),
        ({"run": deep(5000)}, "top level: expected at most 12 levels"),
        ({"sweeps": [None] * 10_000}, "top level: expected at most 10000 values"),
        ({"kernels": {"rows": 10**5000}}, "kernels.rows: expected an integer of at "),
        ({"compile": 10**5000}, "compile: expected an integer of at most 64 bits, got"),
        ({"a\nb": 1}, r"'a\\nb': unknown key; allowed: activation_searches"),
        ({"run": object()}, "run: expected text, got a value of type object"),
        ({"run": "published"}, "run: expected another name than 'published'"),
        ({"pathvars": {"results": "/etc"}}, "pathvars: unknown key"),
    ],
    ids=lambda value: value[:20] if type(value) is str else "",
)
def test_hostile_values_are_named_in_a_line(faults, message):
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        checked_configuration({**SMALL, **faults}, SCHEMA)


def test_a_hundred_faults_are_a_screen():
    faults = dict.fromkeys(map("typo-{}".format, range(100)))
    with pytest.raises(ConfigurationError, match=r"\nand 80 more$") as caught:
        checked_configuration({**SMALL, **faults}, SCHEMA)
    assert len(str(caught.value).splitlines()) == 21


def test_more_jobs_than_can_be_planned_are_counted_and_refused():
    """Before they are listed: this one would be 180 million runs."""
    names = [f"m{number}" for number in range(100)]
    model = {"layer": "sage", "num_layers": 2, "hidden": 8}
    sweep = {
        "graphs": ["digits", "cora"],
        "models": names,
        "methods": names,
        "seeds": 9000,
        "seeds_per_job": 1,
        "training": {"epochs": 1},
    }
    config = SMALL | {
        "models": dict.fromkeys(names, model),
        "methods": {name: {"label": name, "policy": "full"} for name in names},
        "sweeps": [sweep],
    }
    with pytest.raises(
        ConfigurationError, match=r"^sweeps: .* 20000 .* got 180000000;"
    ):
        checked_configuration(config, SCHEMA)


@settings(max_examples=100)
@given(hostile)
def test_a_top_level_of_any_kind_gives_lines(config):
    assert plans_or_message(config) is None


@settings(max_examples=100)
@given(drawn(SCHEMA))
def test_what_the_schema_admits_gives_plans_or_lines(config):
    """Unknown names, clashes and ranges are left to be found."""
    plans_or_message(config)


@pytest.mark.parametrize("config", SHIPPED, ids=lambda config: config["run"])
def test_shipped_configurations_give_plans(config):
    assert plans_or_message(config)
