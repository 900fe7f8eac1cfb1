"""Report: one HTML page with every table and figure inside it, for reading offline.

First what was found, in sentences and two pictures, then all figures, then all tables,
then the checks and what made the records. Its few lines of script sort tables and open
them for printing; without script all of it can be read.

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

from pipeline_src.report.findings import findings
from pipeline_src.report.sections import read_markdown

# On the first screen, if they were drawn; else the first two figures.
FIRST_SEEN = ("accuracy_memory", "pareto")
FIGURE_TYPES = {"svg": "image/svg+xml", "png": "image/png"}  # the first is preferred


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
    sections = [section for section in map(read_markdown, tables) if section.rows]
    pictures = [
        Picture(name, _caption(captions, name), _data_uri(formats))
        for name, formats in figures.items()
    ]
    first = [picture for picture in pictures if picture.name in FIRST_SEEN]
    first = (first + [p for p in pictures if p not in first])[:2]
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
        findings=findings(sections),
        first=first,
        sections=sections,
        pictures=[picture for picture in pictures if picture not in first],
        checks=checks.strip().splitlines(),
        provenance=provenance_rows(runs, others),
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
<meta name="color-scheme" content="light dark">
<title>Compressed activations on {{ graphs }}</title>
<style>
:root { --text: #1a1a1a; --page: #fff; --quiet: #444; --line: #ddd; --rule: #888;
        --hover: #f3f6fa; }
@media screen and (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --page: #16181c; --quiet: #b5b5b5; --line: #3a3d44;
          --rule: #888; --hover: #23262d; }
  a { color: #8ab4f8; } }
body { font: 16px/1.5 Georgia, "Times New Roman", serif; color: var(--text);
       background: var(--page); max-width: 74rem; margin: 1.5rem auto;
       padding: 0 1rem; }
h1, h2, summary, th, td, nav, figcaption b {
       font-family: system-ui, "Segoe UI", Arial, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: 0 0 0.3rem; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--rule); }
nav { font-size: 0.9rem; } nav a { margin-right: 1rem; }
p, figcaption, ul { max-width: 52rem; }
.findings { font-size: 1.02rem; padding-left: 1.2rem; margin: 0.8rem 0; }
.first { display: grid; gap: 1rem; align-items: start;
         grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); }
.first figure { margin: 0; }
figure { margin: 1.5rem 0 2.5rem; }
figure img { width: 100%; max-width: 52rem; background: #fff; }
.first img { max-height: 34rem; object-fit: contain; object-position: top left; }
figcaption, .note { color: var(--quiet); font-size: 0.9rem; }
details { border-bottom: 1px solid var(--line); padding: 0.4rem 0; }
summary { cursor: pointer; font-weight: 600; }
.wide { overflow: auto; max-height: 85vh; }
table { border-collapse: separate; border-spacing: 0; font-size: 0.8rem;
        font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid var(--rule); vertical-align: bottom;
     white-space: normal; }
thead th { position: sticky; top: 0; background: var(--page); }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
            text-align: inherit; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
td { border-bottom: 1px solid var(--line); }
.number { text-align: right; }
tbody tr:hover { background: var(--hover); }
td.value { white-space: normal; overflow-wrap: anywhere; }
@media print { body { margin: 0; max-width: none; }
               figure, tr { break-inside: avoid; }
               .wide { overflow: visible; max-height: none; }
               thead th { position: static; } table { font-size: 0.6rem; }
               th, td { padding: 0.1rem 0.3rem; white-space: normal; } }
</style>
</head>
<body>
<h1>Compressed activations on {{ graphs }}</h1>
<nav>
<a href="#figures">Figures</a>
<a href="#tables">Tables</a>
<a href="#checks">Checks</a>
<a href="#provenance">Provenance</a>
</nav>
{% macro show(picture, number) %}
<figure>
<img alt="{{ picture.name | replace('_', ' ') }}" src="{{ picture.data_uri }}">
<figcaption><b>Figure {{ number }}.</b> {{ picture.caption }}</figcaption>
</figure>
{% endmacro %}
{% if findings %}
<ul class="findings">
{% for sentence in findings %}
<li>{{ sentence }}</li>
{% endfor %}
</ul>
{% endif %}
<div class="first">
{% for picture in first %}
{{ show(picture, loop.index) }}
{% endfor %}
</div>
<h2 id="figures">Figures</h2>
{% for picture in pictures %}
{{ show(picture, loop.index + first | length) }}
{% endfor %}
<h2 id="tables">Tables</h2>
{% for section in sections %}
<details id="table{{ loop.index }}"{% if loop.first %} open{% endif %}>
<summary>{{ section.title }}</summary>
<p class="note">{{ section.note }}</p>
<div class="wide"><table>
<thead><tr>
{% for cell in section.header %}
<th{% if section.is_number[loop.index0] %} class="number"{% endif %} scope="col">
<button type="button">{{ cell }}</button></th>
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
</details>
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
<script>
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const rising = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const key = (row) => {
      const text = row.cells[head.cellIndex].textContent.replace(/,(?=\\d{3})/g, "");
      const number = parseFloat(text);
      return head.className ? (isNaN(number) ? Infinity : number) : text;
    };
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return (x > y) - (x < y);
    });
    body.append(...(rising ? rows : rows.reverse()));
  });
}
const closed = () => document.querySelectorAll("details:not([open])");
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...closed()];
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of opened) one.open = false;
});
</script>
</body>
</html>
"""
