"""The committed table of figures, the laws it obeys, and how a change of it is shown.

A row is a case on a device. Laws hold whatever the table says. A figure that is worse
than the committed one fails; a better one fails as well and asks to be committed, so
that it cannot be lost again unseen.
"""

import csv
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu_proof.machine_code import ARCHITECTURES

FOLDER = Path(__file__).resolve().parents[2] / "results" / "published"

# column -> whether more is better; None for what only describes
COLUMNS: dict[str, bool | None] = {
    "case": None,
    "kernel": None,
    "device": None,
    "modules": False,  # that one compilation for all numbers of rows takes
    "launches": False,
    "extern_calls": False,
    "configuration": None,  # of those that Inductor would time: fewest instructions
    "registers": False,  # of the kernel that takes most
    "spills": False,
    "float64": False,  # instructions
    "load_bytes": True,  # that a load moves for a thread, on average
    "store_bytes": True,
    "bytes_ratio": False,  # moved, over what must be read and written once
    "bytes_ratio_read_again": False,  # the same with what loops load again
    "bytes_per_value": False,
    "instructions_per_value": False,  # an upper bound: all paths of a kernel counted
}
STEP_COLUMNS: dict[str, bool | None] = {
    "policy": None,
    "layer": None,
    "batch_norm": None,
    "launches": False,  # beside products and loss
    "kernels": False,  # of the library, among them
    "products": False,  # matmul and SpMM
    "loss": False,
}
MOST_LAUNCHES = {"rectified._active_sums": 2}
# Cases of blocks of 63 values, where several blocks share words below 8 bits: two more
# launches join the zero points and the scales of a packet, a number for each block.
SHARED_WORDS = "bits block 63"
_MOST_LAUNCHES_SHARED = 3
# Spills are held to be 0 on what the module was written for. What AMD's compiler makes
# of a module that was written for another warp size is recorded, and may not grow.
NO_SPILLS = ("sm_80", "sm_90")
MOST_BYTES = {
    "rectified._encode": 1.3,
}
_MOST_BYTES_ELSEWHERE = 1.1


def rows_of(proven: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each case and device that could be compiled."""
    rows = []
    for one in proven:
        for device in ARCHITECTURES:
            codes = {name: code[device] for name, code in one["machine_code"].items()}
            if codes and not any("fault" in code for code in codes.values()):
                rows.append(_row(one, device, codes))
    return rows


def _row(
    one: dict[str, Any], device: str, codes: dict[str, dict[str, Any]]
) -> dict[str, str]:
    launched = [codes[launch["kernel"]] for launch in one["launches"]]
    instructions = sum(
        code["instructions"] * _threads(launch, code)
        for launch, code in zip(one["launches"], launched, strict=True)
    )
    moved, again = one["bytes_moved"], one["bytes_read_again"]
    figures: dict[str, Any] = {
        "case": one["case"],
        "kernel": one["kernel"],
        "device": device,
        "modules": one["modules"],
        "launches": len(one["launches"]),
        "extern_calls": len(one["extern_calls"]),
        "configuration": max(code["configuration"] for code in launched),
        "registers": max(code["registers"] for code in launched),
        "spills": sum(code["spills"] + code["local"] for code in launched),
        "float64": sum(code["float64"] for code in launched),
        "load_bytes": _mean_width(code["loads"] for code in launched),
        "store_bytes": _mean_width(code["stores"] for code in launched),
        "bytes_ratio": f"{moved / one['bytes_needed']:.2f}",
        "bytes_ratio_read_again": f"{(moved + again) / one['bytes_needed']:.2f}",
        "bytes_per_value": f"{moved / one['values']:.2f}",
        "instructions_per_value": f"{instructions / one['values']:.1f}",
    }
    return {name: str(figures[name]) for name in COLUMNS}


def _threads(launch: dict[str, Any], code: dict[str, Any]) -> int:
    """Threads of a launch, times the rounds of its loop."""
    count = code["threads"]
    for axis in "xyz":
        if f"{axis}numel" in launch:
            count *= -(-launch[f"{axis}numel"] // code.get(f"{axis.upper()}BLOCK", 1))
    if "R0_BLOCK" in code:
        count *= -(-launch["r0_numel"] // code["R0_BLOCK"])
    return count


def _mean_width(counts: Iterable[dict[str, int]]) -> str:
    total: Counter[int] = Counter()
    for one in counts:
        total.update({int(size): n for size, n in one.items()})
    if not total:
        return "0"
    return f"{sum(size * n for size, n in total.items()) / total.total():.1f}"


def launches_allowed(kernel: str) -> int:
    """That one call of a kernel may take."""
    return MOST_LAUNCHES.get(kernel, 1)


def broken_laws(one: dict[str, Any]) -> list[str]:
    """What a case breaks whatever the table says; empty if nothing."""
    name = one["case"]
    broken = [f"{name}: {fault}" for fault in one["faults"]]
    for kernel, code in one["machine_code"].items():
        for device in ARCHITECTURES:
            if "fault" in code[device]:
                fault = code[device]["fault"]
                broken.append(f"{name}: {kernel} does not compile, {device}: {fault}")
            elif code[device].get("unlike_eager", 0):
                broken.append(
                    f"{name}: {kernel} rounds unlike plain operations on {device}, in "
                    f"{code[device]['unlike_eager']} instructions"
                )
    most_launches = launches_allowed(one["kernel"])
    if name.startswith("compress") and SHARED_WORDS in name:
        most_launches = _MOST_LAUNCHES_SHARED
    most_bytes = MOST_BYTES.get(one["kernel"], _MOST_BYTES_ELSEWHERE)
    for row in rows_of([one]):
        limits = {
            "modules": 1,
            "launches": most_launches,
            "extern_calls": 0,
            "spills": 0 if row["device"] in NO_SPILLS else math.inf,
            "float64": 0,
            "bytes_ratio": most_bytes,
        }
        broken += [
            f"{name}: {column} is {row[column]} on {row['device']}, at most {most}"
            for column, most in limits.items()
            if float(row[column]) > most
        ]
    return broken


@dataclass(frozen=True)
class Table:
    """A file of rows, told apart by their columns that only describe."""

    path: Path
    columns: dict[str, bool | None]
    num_keys: int  # of the first columns that are what a row is called

    def read(self) -> list[dict[str, str]]:
        """The committed rows; none if there is no table."""
        if not self.path.exists():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def write(self, rows: list[dict[str, str]]) -> None:
        """Replace the committed table."""
        with self.path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(self.columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def differences(
        self, committed: list[dict[str, str]], found: list[dict[str, str]]
    ) -> list[str]:
        """Each found figure that is not the committed one, and which is better.

        Rows that were not asked for are left out; `gone` names them.
        """
        before = {self._key(row): row for row in committed}
        shown = []
        for row in found:
            key = self._key(row)
            if key not in before:
                shown.append(f"new: {key}")
                continue
            for name, more_is_better in self.columns.items():
                old, new = before[key][name], row[name]
                if old != new:
                    verdict = _verdict(old, new, more_is_better)
                    shown.append(f"{verdict}: {key}: {name} {old} -> {new}")
        return shown

    def gone(
        self, committed: list[dict[str, str]], found: list[dict[str, str]]
    ) -> list[str]:
        """Rows that are committed and were not found."""
        there = {self._key(row) for row in found}
        keys = [self._key(row) for row in committed]
        return [f"gone: {key}" for key in keys if key not in there]

    def _key(self, row: dict[str, str]) -> str:
        return ", ".join(row[name] for name in list(self.columns)[: self.num_keys])


KERNELS = Table(FOLDER / "gpu_proof.csv", COLUMNS, 3)
STEPS = Table(FOLDER / "gpu_proof_steps.csv", STEP_COLUMNS, 3)
BEFORE = Table(FOLDER / "gpu_proof_before.csv", {}, 1)  # only read: never made again
# What each case was proven with when KERNELS was written: one digest of all of it.
DIGESTS = Table(FOLDER / "gpu_proof_digests.csv", {"case": None, "digest": None}, 1)
# Made of KERNELS by pages.py: no figure of it was counted or measured.
ESTIMATES = Table(
    FOLDER / "gpu_estimates.csv",
    {"case": None, "device": None, "estimated_share": True},
    2,
)


def _verdict(old: str, new: str, more_is_better: bool | None) -> str:
    if more_is_better is None:
        return "changed"
    is_better = (float(new) > float(old)) == more_is_better
    return "better, commit it" if is_better else "worse"
