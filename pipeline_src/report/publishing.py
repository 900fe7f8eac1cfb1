"""Published results, and the tables in the README that are cut out of them.

`publish` copies what one configuration made to results/published/. The documentation
includes these files as they are. The README, which nothing builds, shows some rows and
columns of them between marks such as

    <!-- from results/published/default/accuracy.md
         rows: digits | FP32; digits | EXACT
         columns: graph; method; test accuracy [%] -->
    ...
    <!-- end -->

and `publish` writes these places anew. A row is named by any of its cells. Nothing
between marks is typed by hand; a test fills them again and compares.

Packed features and searches of their bits are also kept as sgquant.csv and
abs_search.csv. Benchmarks are also kept for each device, by the names of run, table and
device, as benchmark_training_cpu.csv or benchmark_kernels_h200.csv, so that one run may
be published from several machines.
"""

import csv
import json
import math
import re
import shutil
import sys
from pathlib import Path

from pipeline_src.records.datasets import read_dataset

_FEATURE_TABLES = ("sgquant.csv", "abs_search.csv")
_MARKED = re.compile(
    r"(<!-- from (\S+)\s+rows: ([^\n]+)\n\s+columns: ([^\n]+) -->\n).*?(<!-- end -->)",
    re.DOTALL,
)
PUBLISHED = Path("results/published")
# Words of a GPU's name that tell nothing.
_MAKERS = {"nvidia", "geforce", "tesla", "quadro", "amd", "radeon", "instinct"}


def fill_marked_places(readme: str, root: Path) -> str:
    """The README with the present rows and columns of each marked file.

    Raises:
        FileNotFoundError: if a marked file does not exist.
        ValueError: if it has no such column, or not exactly one such row.
    """

    def fill(match: re.Match[str]) -> str:
        mark, path, rows, columns, end = match.groups()
        table = (root / path).read_text(encoding="utf-8")
        return mark + _cut_out(table, _names(rows), _names(columns), path) + end

    return _MARKED.sub(fill, readme)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(";")]


def _cut_out(markdown: str, rows: list[str], columns: list[str], path: str) -> str:
    """Some rows and columns of a Markdown table, in the order asked for."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    header, rule, *body = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines
    ]
    if missing := [name for name in columns if name not in header]:
        raise ValueError(f"{path} has no columns {missing}; it has {header}")
    chosen = [header, rule]
    for row in rows:
        wanted = {name.strip() for name in row.split("|")}
        found = [cells for cells in body if wanted <= set(cells)]
        if len(found) != 1:
            raise ValueError(f"{path}: expected one row {row!r}, got {len(found)}")
        chosen += found
    places = [header.index(name) for name in columns]
    return "".join(
        f"| {' | '.join(cells[place] for place in places)} |\n" for cells in chosen
    )


def publish(run: str, root: Path) -> list[Path]:
    """Copy a run's tables and figures to results/published/, and fill the README.

    What the run did not ask for, a table without rows, is left out, and what an earlier
    publication left there is removed. Tables of a benchmark are copied once more under
    the name of its device: that of kernels, and that of training if it holds a time to
    compare with. Tables of packed features are copied once more under their own names.

    Raises:
        FileNotFoundError: if the run has not been made.
        ValueError: if a benchmark was not measured on one device.
    """
    source, target = root / "results" / run, root / PUBLISHED / run
    if not (source / "report.html").exists():
        raise FileNotFoundError(f"{source}/report.html: make the run {run} first")
    tables = [path for path in source.glob("tables/*") if _has_rows(path)]
    files = [*tables, *source.glob("figures/*.png")]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, target / file.name)
    published = [target / file.name for file in files]
    published += _publish_benchmarks(source, target.parent)
    published += _publish_features(source, target.parent)
    readme = root / "README.md"
    text = fill_marked_places(readme.read_text(encoding="utf-8"), root)
    readme.write_text(text, encoding="utf-8")
    return sorted(published)


def device_slug(device: str) -> str:
    """Short name of a device for a file.

    >>> device_slug("NVIDIA H200"), device_slug("NVIDIA A100-SXM4-80GB")
    ('h200', 'a100-sxm4-80gb')
    >>> device_slug("cpu")
    'cpu'
    """
    words = re.findall(r"[a-z0-9]+", device.lower())
    return "-".join(word for word in words if word not in _MAKERS)


def _has_rows(table: Path) -> bool:
    """Whether there is more than a header; a table's CSV file tells of its Markdown."""
    lines = table.with_suffix(".csv").read_text(encoding="utf-8").splitlines()
    return len(lines) > 1


def _publish_features(source: Path, target: Path) -> list[Path]:
    """Copy what the run has of tables of packed features; return where to."""
    tables = [source / "tables" / name for name in _FEATURE_TABLES]
    copies = [(path, target / path.name) for path in tables if path.exists()]
    for path, copy in copies:
        shutil.copyfile(path, copy)
    return [copy for _, copy in copies]


def _publish_benchmarks(source: Path, target: Path) -> list[Path]:
    """Copy what the run has of benchmark tables; return where to."""
    tables = {
        name: source / "tables" / f"{name}.csv" for name in ("training", "kernels")
    }
    chosen = [
        name
        for name, path in tables.items()
        if path.exists() and (name == "kernels" or _has_ratios(path))
    ]
    if not chosen:
        return []
    slug = device_slug(_device_of(source))
    copies = [target / f"{source.name}_{name}_{slug}.csv" for name in chosen]
    for name, copy in zip(chosen, copies, strict=True):
        shutil.copyfile(tables[name], copy)
    return copies


def _has_ratios(path: Path) -> bool:
    """Whether any method's time could be compared with the reference's."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return any(math.isfinite(float(row["epoch_time_ratio"])) for row in rows)


def _device_of(source: Path) -> str:
    """Name of the one device that a run was measured on."""
    runs = read_dataset(source / "runs.nc")
    texts = [*runs["measurement_provenance"].values, *runs["provenance"].values]
    devices = sorted({json.loads(str(text))["device"] for text in texts})
    if len(devices) != 1:
        raise ValueError(
            f"a published benchmark is of one device, got {devices} in"
            f" {source}/runs.nc; make the run anew on one machine"
        )
    return str(devices[0])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for path in publish(name, Path.cwd()):
            print(path)
