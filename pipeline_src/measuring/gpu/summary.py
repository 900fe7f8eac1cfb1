"""A page of what a run on a GPU has found: python -m ...summary FOLDER.

It reads the small files of the folder, whichever are there, and needs nothing but the
standard library. Where results/published/gpu_estimates.csv has estimates for this
kind of device, made without one, they stand beside what was measured.
"""

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline_src.measuring.gpu.results import NOTES, read_rows

ESTIMATES = Path("results/published/gpu_estimates.csv")
Row = dict[str, str]
# file -> title, columns that the page shows
TABLES = {
    "kernels": (
        "Kernels: time on the device, in turns with a copy of the tensor",
        (
            *("operation", "implementation", "bits", "block_size", "samples"),
            *("device_us_q1", "device_us", "device_us_q3", "host_us"),
            *("host_bound_samples", "share_of_copy"),
        ),
    ),
    "training": (
        "Training steps: methods in turns on a graph with ogbn-arxiv's counts",
        (
            *("model", "method", "state", "first_step_s", "samples"),
            *("step_ms_q1", "step_ms", "step_ms_q3", "step_over_fp32", "launches"),
            *("saved_mib", "booked_saved_mib", "peak_mib", "resident_mib"),
        ),
    ),
    "products": (
        "Full-batch steps on a graph with ogbn-products' counts",
        (
            *("model", "method", "state", "nodes", "entries", "step_ms"),
            *("saved_mib", "booked_saved_mib", "peak_mib", "resident_mib"),
        ),
    ),
    "lean_agreement": (
        "Lean's kernels on this device against plain ones on its CPU",
        (
            *("bits", "values", "differing_codes", "differing_ends", "differing_h"),
            *("differing_output", "differing_gradient", "sums_difference_over_bound"),
        ),
    ),
    "aggregation": (
        "Aggregation: what the sparse product does with its output",
        (
            *("map", "direction", "width", "library_shows_nan"),
            *("bare_product_shows_nan", "repetitions", "differing_values"),
            *("cpu_difference_over_bound", "device_us", "device_us_zeros"),
        ),
    ),
    "agreement": (
        "Codes of this device against those of its CPU",
        (
            *("bits", "boundaries", "values", "differing_codes", "beside_an_edge"),
            *("differing_ends", "wrong_codes", "differing_metadata"),
            *("differing_decoded", "decoded_difference_over_bound"),
        ),
    ),
}


def write_summary(folder: Path, estimates: Path = ESTIMATES) -> Path:
    """Write summary.md into the folder of a run."""
    machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    found = {name: read_rows(folder / f"{name}.csv") for name in TABLES}
    parts = [
        f"# {machine['device']}",
        _machine_line(machine),
        *_clock_lines(read_rows(folder / "clocks.csv")),
        "## Parts",
        _table(read_rows(folder / "parts.csv"), ("part", "state", "seconds")),
        _notes(read_rows(folder / NOTES)),
        "## Findings",
        "\n".join(f"- {line}" for line in findings(found, folder)),
    ]
    for name, (title, columns) in TABLES.items():
        parts += [f"## {title}", _table(found[name], columns)]
    capability = str(machine.get("capability") or "")
    kind = f"sm_{capability.replace('.', '')}" if capability else "a CPU"
    beside = _beside(found["kernels"], kind, estimates)
    parts += ["## Estimated beside measured", beside]
    path = folder / "summary.md"
    path.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    return path


def findings(found: dict[str, list[Row]], folder: Path) -> list[str]:
    """What the tables answer, in sentences."""
    lines = []
    if codes := found["agreement"]:
        values, differing = _sum(codes, "values"), _sum(codes, "differing_codes")
        wrong = _sum(codes, "wrong_codes")
        verdict = "each beside an edge" if wrong == 0 else f"{wrong} beside NO edge"
        lines.append(f"{differing} of {values} codes differ from the CPU's, {verdict}.")
        if metadata := _sum(codes, "differing_metadata"):
            lines.append(f"{metadata} zero points or scales differ from the CPU's.")
        over = max(float(row["decoded_difference_over_bound"]) for row in codes)
        inside = "within" if over <= 1 else "NOT within"
        lines.append(f"Decoded values are {inside} the bound of rounding ({over:.2g}).")
    if lean := found["lean_agreement"]:
        names = [name for name in lean[0] if name.startswith("differing")]
        differing = sum(_sum(lean, name) for name in names)
        lines.append(
            "Lean's kernels give the CPU's bits."
            if differing == 0
            else f"Lean's kernels do NOT give the CPU's bits: {differing} differ."
        )
    if maps := found["aggregation"]:
        shown = _sum(maps, "library_shows_nan")
        lines.append(
            "An aggregation overwrites NaN."
            if shown == 0
            else f"An aggregation SHOWS {shown} NaN of its output's memory."
        )
        bare = _sum(maps, "bare_product_shows_nan")
        lines.append(
            "The bare product showed no NaN: this one leaves its output unread."
            if bare == 0
            else f"The bare product shows {bare} NaN: its zeros are needed."
        )
        differing = _sum(maps, "differing_values")
        repetitions = _sum(maps, "repetitions")
        lines.append(
            f"The sparse product repeated bit for bit in {repetitions} repetitions."
            if differing == 0
            else f"The sparse product does NOT repeat bit for bit: {differing} values "
            f"differ in {repetitions} repetitions."
        )
    if tests := read_rows(folder / "tests.csv"):
        outcomes = [row["outcome"] for row in tests]
        counts = {name: outcomes.count(name) for name in sorted(set(outcomes))}
        shown_counts = ", ".join(f"{number} {name}" for name, number in counts.items())
        lines.append(f"Marked tests: {shown_counts}.")
    return lines or ["None: no part came to an end."]


def faults(part: str, rows: Sequence[Row]) -> list[str]:
    """What a part's rows hold that must not be; none if all is well."""
    found = []
    for row in rows:
        if part == "agreement":
            bad = int(row["wrong_codes"]), int(row["differing_metadata"])
            over = row["decoded_difference_over_bound"]
            if any(bad) or not float(over) <= 1:
                found.append(
                    f"{row['bits']} bits, {row['boundaries']} edges: {bad[0]} codes and"
                    f" {bad[1]} zero points or scales are wrong, decoded values are "
                    f"{over} times the bound of rounding apart"
                )
        elif part == "lean_agreement":
            names = [name for name in row if name.startswith("differing")]
            differing = {name: row[name] for name in names if row[name] != "0"}
            over = row["sums_difference_over_bound"]
            if differing or not float(over) <= 1:
                found.append(
                    f"lean, {row['bits']} bits: {differing or 'no'} values, sums are "
                    f"{over} times the bound of rounding apart"
                )
        elif part == "aggregation":
            nan, over = int(row["library_shows_nan"]), row["cpu_difference_over_bound"]
            if nan or not float(over) <= 1:
                found.append(
                    f"{row['map']} {row['direction']}, width {row['width']}: {nan} NaN,"
                    f" {over} times the bound of rounding away from the CPU's"
                )
        elif row.get("state") == "failed":
            found.append(f"{row['model']} {row['method']} failed")
    return found


def _machine_line(machine: dict[str, Any]) -> str:
    names = ("torch", "cuda", "driver", "python", "capability", "memory_mib")
    known = [f"{name} {machine[name]}" for name in names if machine.get(name)]
    lacking = ", ".join(machine["lacking"])
    line = ", ".join(known) + (f". Lacking: {lacking}." if lacking else ".")
    if machine["cpu_only"]:
        line += (
            "\n\n**A rehearsal on a CPU and on tiny sizes: no number means anything.**"
        )
    return line


def _clock_lines(rows: Sequence[Row]) -> list[str]:
    """Least and median clock of each part, as nvidia-smi tells it."""
    if not rows:
        return ["Clocks: not known (no nvidia-smi)."]
    lines = []
    for part in dict.fromkeys(row["part"] for row in rows):
        mhz = [
            float(row["clocks.sm"])
            for row in rows
            if row["part"] == part and row["clocks.sm"].strip().isdigit()
        ]
        if mhz:
            median = statistics.median(mhz)
            lines.append(
                f"{part} {min(mhz):.0f} to {max(mhz):.0f}, median {median:.0f}"
            )
    return ["Clock of the multiprocessors in MHz: " + "; ".join(lines) + "."]


def _beside(kernels: Sequence[Row], kind: str, path: Path) -> str:
    """Estimated and measured share of a copy of each compiled kernel."""
    estimates = {
        row["case"]: row["estimated_share"]
        for row in read_rows(path)
        if row["device"] == kind
    }
    if not estimates:
        return f"Not here: {path} has no estimate for {kind}."
    rows = [
        {
            **{"case": case, "block_size": row["block_size"]},
            **{"estimated": estimates[case], "measured": row["share_of_copy"]},
        }
        for row in kernels
        if row["implementation"] == "compiled" and (case := _case(row)) in estimates
    ]
    return _table(rows, ("case", "block_size", "estimated", "measured"))


def _case(row: Row) -> str:
    """What the proof calls a kernel; blocks that fill words are alike to it."""
    operation, bits = row["operation"], row["bits"]
    if operation in ("compress", "decompress"):
        block = 63 if int(row["block_size"]) % 64 else 64
        return f"{operation} {bits} bits block {block}"
    return f"{'rectify' if operation == 'encode' else operation} {bits} bits"


def _table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    if not rows:
        return "Not measured."
    lines = [_line(columns), _line("---" for _ in columns)]
    lines += [_line(row.get(name) or "" for name in columns) for row in rows]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _notes(rows: Sequence[Row]) -> str:
    return "\n".join(f"- {row['part']}: {row['note']}" for row in rows)


def _sum(rows: Sequence[Row], column: str) -> int:
    return sum(int(row[column]) for row in rows)


if __name__ == "__main__":
    print(write_summary(Path(sys.argv[1])))
