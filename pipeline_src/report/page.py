"""Report: one HTML page with every table and figure inside it, for reading offline.

Figures go in as base64, tables as HTML, so the page refers to nothing outside itself
and can be sent by mail. It is written from the finished files: the tables' Markdown is
the only place where their text is made, and the figures' captions are those that
Snakemake's own report shows.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import xarray as xr

from pipeline_src.report.markdown import cells

FIGURE_TYPES = {"svg": "image/svg+xml", "png": "image/png"}  # the first is preferred


@dataclass(frozen=True)
class Section:
    """One table of a Markdown page: title, note and cells as text."""

    title: str
    note: str
    header: list[str]
    is_number: list[bool]  # per column
    rows: list[list[str]]


@dataclass(frozen=True)
class Picture:
    """One figure, ready to be inlined."""

    name: str
    caption: str
    data_uri: str


def write_report(
    runs: xr.Dataset,
    tables: Sequence[str],
    figures: Mapping[str, Mapping[str, bytes]],
    captions: str,
    checks: str,
    features: xr.Dataset | None = None,
    settings: xr.Dataset | None = None,
) -> str:
    """Return the page.

    Args:
        runs: the collected dataset, for the provenance.
        tables: Markdown pages as `tables.to_markdown` writes them; those without
            rows are left out.
        figures: name of a figure -> format ("svg" or "png") -> content.
        captions: Jinja template of a caption, given `snakemake.wildcards.figure`.
        checks: what was checked, one line each.
        features: collected bits of stored features, for the provenance, if any.
        settings: collected settings of activation compression, likewise.
    """
    others = [dataset for dataset in (features, settings) if dataset]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    return environment.from_string(_PAGE).render(
        graphs=", ".join(
            dict.fromkeys(
                _distinct(runs, "graph")
                + _distinct(runs, "measurement_graph")
                + [
                    graph
                    for dataset in others
                    for graph in _distinct(dataset, "measurement_graph")
                ]
            )
        ),
        sections=[section for section in map(read_markdown, tables) if section.rows],
        pictures=[
            Picture(name, _caption(captions, name), _data_uri(formats))
            for name, formats in figures.items()
        ],
        checks=checks.strip().splitlines(),
        provenance=provenance_rows(runs, others),
    )


def read_markdown(page: str) -> Section:
    """Take a Markdown page with one table apart.

    Raises:
        ValueError: if the page holds no table.
    """
    lines = page.splitlines()
    table = [cells(line) for line in lines if line.startswith("|")]
    if len(table) < 2:
        raise ValueError(f"expected a Markdown page with a table, got {page[:80]!r}")
    prose = [line for line in lines if line and not line.startswith("|")]
    return Section(
        title=prose[0].removeprefix("# "),
        note=" ".join(prose[1:]),
        header=table[0],
        is_number=[cell.endswith(":") for cell in table[1]],
        rows=table[2:],
    )


def provenance_rows(
    runs: xr.Dataset, others: Sequence[xr.Dataset] = ()
) -> list[tuple[str, str]]:
    """Return what the records were made with; several values where they differ."""
    texts = [*_distinct(runs, "provenance"), *_distinct(runs, "measurement_provenance")]
    for dataset in others:
        texts += _distinct(dataset, "provenance")
    values: dict[str, list[str]] = {}
    for text in texts:
        for name, value in _flatten(json.loads(text)):
            known = values.setdefault(name, [])
            if value not in known:
                known.append(value)
    return [(name, "; ".join(known)) for name, known in values.items()]


def _flatten(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in provenance.items():
        if isinstance(value, Mapping):
            rows += _flatten(value)
        else:
            rows.append((name.replace("_", " "), str(value)))
    return rows


def _distinct(runs: xr.Dataset, name: str) -> list[str]:
    return list(dict.fromkeys(str(value) for value in runs[name].values))


def _caption(template: str, figure: str) -> str:
    snakemake = SimpleNamespace(wildcards=SimpleNamespace(figure=figure))
    return jinja2.Template(template).render(snakemake=snakemake).strip()


def _data_uri(formats: Mapping[str, bytes]) -> str:
    for name, media_type in FIGURE_TYPES.items():
        if name in formats:
            content = base64.b64encode(formats[name]).decode("ascii")
            return f"data:{media_type};base64,{content}"
    raise ValueError(
        f"a figure must come as one of {list(FIGURE_TYPES)}, got {list(formats)}"
    )


def read_figures(paths: Sequence[Path]) -> dict[str, dict[str, bytes]]:
    """Read figures as write_report takes them, in the order given."""
    figures: dict[str, dict[str, bytes]] = {}
    for path in paths:
        formats = figures.setdefault(path.stem, {})
        formats[path.suffix.removeprefix(".")] = path.read_bytes()
    return figures


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Compressed activations on {{ graphs }}</title>
<style>
body { font: 16px/1.5 Georgia, "Times New Roman", serif; color: #1a1a1a;
       max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, th, td, nav, figcaption b {
       font-family: system-ui, "Segoe UI", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #bbb; }
nav { font-size: 0.9rem; } nav a { margin-right: 1rem; }
p, figcaption, ul { max-width: 44rem; }
.wide { overflow-x: auto; width: fit-content; /* to the edge of the window */
        max-width: min(calc(100vw - 2rem), calc(50vw + 31rem)); }
table { border-collapse: collapse; font-size: 0.8rem;
        font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid #444; vertical-align: bottom; white-space: normal; }
td { border-bottom: 1px solid #ddd; }
.number { text-align: right; }
tbody tr:hover { background: #f3f6fa; }
figure { margin: 1.5rem 0 2.5rem; } figure img { width: 100%; max-width: 52rem; }
figcaption, .note { color: #444; font-size: 0.9rem; }
td.value { white-space: normal; overflow-wrap: anywhere; }
@media print { body { margin: 0; max-width: none; }
               figure, tr { break-inside: avoid; } }
</style>
</head>
<body>
<h1>Compressed activations on {{ graphs }}</h1>
<nav>
{% for section in sections %}
<a href="#table{{ loop.index }}">{{ section.title }}</a>
{% endfor %}
<a href="#figures">Figures</a>
<a href="#checks">Checks</a>
<a href="#provenance">Provenance</a>
</nav>
{% for section in sections %}
<h2 id="table{{ loop.index }}">{{ section.title }}</h2>
<p class="note">{{ section.note }}</p>
<div class="wide"><table>
<thead><tr>
{% for cell in section.header %}
<th{% if section.is_number[loop.index0] %} class="number"{% endif %}>{{ cell }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in section.rows %}
<tr>
{% for cell in row %}
<td{% if section.is_number[loop.index0] %} class="number"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
<h2 id="figures">Figures</h2>
{% for picture in pictures %}
<figure>
<img alt="{{ picture.name | replace('_', ' ') }}" src="{{ picture.data_uri }}">
<figcaption><b>Figure {{ loop.index }}.</b> {{ picture.caption }}</figcaption>
</figure>
{% endfor %}
<h2 id="checks">Checks</h2>
<p class="note">No result contradicts what must hold. Checked:</p>
<ul>
{% for check in checks %}
<li>{{ check }}</li>
{% endfor %}
</ul>
<h2 id="provenance">Provenance</h2>
<table><tbody>
{% for name, value in provenance %}
<tr><td>{{ name }}</td><td class="value">{{ value }}</td></tr>
{% endfor %}
</tbody></table>
</body>
</html>
"""
