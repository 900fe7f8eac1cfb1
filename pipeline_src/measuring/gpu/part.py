"""One part of `make gpu` in a process of its own: a GPU's fault ends no other part.

    python -m pipeline_src.measuring.gpu.part kernels --folder results/gpu/NAME ...

On a CPU the same code runs on sizes that take seconds: a rehearsal, whose numbers mean
nothing.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline_src.measuring.gpu import machine
from pipeline_src.measuring.gpu.clock import Deadline
from pipeline_src.measuring.gpu.results import Rows, note, read_rows
from pipeline_src.measuring.gpu.summary import faults


@dataclass(frozen=True)
class Setting:
    """What every part is given."""

    folder: Path
    name: str  # of the device
    device: torch.device
    deadline: Deadline
    compile: bool

    @property
    def is_rehearsal(self) -> bool:
        """Whether numbers mean nothing, so that small sizes do."""
        return self.device.type == "cpu"


def agreement(setting: Setting) -> list[str]:
    """Codes and decoded values of both devices."""
    from pipeline_src.measuring.gpu.agreement import COLUMNS, compare_devices

    return compare_devices(
        Rows(setting.folder / "agreement.csv", COLUMNS),
        setting.name,
        setting.device,
        setting.deadline,
        values=20_000 if setting.is_rehearsal else 4_000_000,
        compile=setting.compile,
    )


def lean_agreement(setting: Setting) -> list[str]:
    """What lean's kernels make of rows, on both devices."""
    from pipeline_src.measuring.gpu.lean_agreement import (
        ARXIV_RUN,
        COLUMNS,
        TINY,
        compare_devices,
    )

    return compare_devices(
        Rows(setting.folder / "lean_agreement.csv", COLUMNS),
        setting.name,
        setting.device,
        setting.deadline,
        shape=TINY if setting.is_rehearsal else ARXIV_RUN,
        compile=setting.compile,
    )


def aggregation(setting: Setting) -> list[str]:
    """What the sparse product does with its output, and whether it repeats."""
    from pipeline_src.graphs.sizes import ARXIV, scaled_arxiv
    from pipeline_src.measuring.gpu.aggregation import COLUMNS, look_at_aggregation

    return look_at_aggregation(
        Rows(setting.folder / "aggregation.csv", COLUMNS),
        setting.name,
        setting.device,
        setting.deadline,
        sizes=scaled_arxiv(400) if setting.is_rehearsal else ARXIV,
    )


def kernels(setting: Setting) -> list[str]:
    """Time of the kernels."""
    from pipeline_src.measuring.gpu.kernels import (
        ARXIV_HIDDEN,
        COLUMNS,
        TINY,
        time_kernels,
    )

    return time_kernels(
        Rows(setting.folder / "kernels.csv", COLUMNS),
        setting.name,
        setting.device,
        setting.deadline,
        shape=TINY if setting.is_rehearsal else ARXIV_HIDDEN,
        compile=setting.compile,
        repeats=2 if setting.is_rehearsal else 20,
    )


def training(setting: Setting) -> list[str]:
    """Steps of networks on a graph with ogbn-arxiv's counts."""
    from pipeline_src.graphs.sizes import ARXIV, scaled_arxiv
    from pipeline_src.measuring.gpu.steps import COLUMNS, MODELS, time_training

    return time_training(
        Rows(setting.folder / "training.csv", COLUMNS),
        setting.name,
        setting.device,
        setting.deadline,
        graph_name="arxiv_shape",
        sizes=scaled_arxiv(400) if setting.is_rehearsal else ARXIV,
        compile="auto" if setting.compile else "false",
        models=MODELS[:1] if setting.is_rehearsal else MODELS,
        repeats=2 if setting.is_rehearsal else 15,
    )


def products(setting: Setting) -> list[str]:
    """Full-batch steps on a graph with ogbn-products' counts, as far as they fit."""
    from pipeline_src.graphs.sizes import PRODUCTS, scaled_arxiv
    from pipeline_src.measuring.gpu.steps import COLUMNS, fit_large_graph

    return fit_large_graph(
        Rows(setting.folder / "products.csv", COLUMNS),
        setting.name,
        setting.device,
        setting.deadline,
        graph_name="products_shape",
        sizes=scaled_arxiv(600) if setting.is_rehearsal else PRODUCTS,
        compile="auto" if setting.compile else "false",
    )


PARTS = {
    part.__name__: part
    for part in (
        *(agreement, lean_agreement, aggregation),
        *(kernels, training, products),
    )
}


def main(arguments: list[str] | None = None) -> None:
    """Run the part that the command line names, or describe the machine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["machine", *PARTS])
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--name", help="of the device")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--plain", action="store_true", help="compile nothing")
    given = parser.parse_args(arguments)
    if given.part == "machine":
        print(json.dumps(machine.describe_machine(given.device)))
        return
    setting = Setting(
        given.folder,
        given.name,
        torch.device(given.device),
        Deadline(given.seconds),
        not given.plain,
    )
    if left := PARTS[given.part](setting):
        text = f"left out after {given.seconds:.0f} s: {'; '.join(left)}"
        note(given.folder, given.part, text)
    found = faults(given.part, read_rows(given.folder / f"{given.part}.csv"))
    for fault in found:
        note(given.folder, given.part, f"FAULT {fault}")
    if found:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
