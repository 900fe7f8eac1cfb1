"""Where the memory of a training step goes, before and after `compress`.

The step is not taken: a copy of the model sees fake tensors of the input's shapes, so
that a laptop answers for a graph that would not fit it (fakes.py).
"""

import copy
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline_src.compression.attachment import attachment_of, compress, decompress
from pipeline_src.compression.config import CompressionConfig
from pipeline_src.compression.keeper import Note
from pipeline_src.compression.memory.fakes import Fakes
from pipeline_src.compression.memory.page import Table, html, short, size, text
from pipeline_src.compression.memory.shortened import shortened
from pipeline_src.compression.memory.step import (
    Loss,
    MakeOptimizer,
    StepMemory,
    follow_step,
    mean_square,
)
from pipeline_src.compression.memory.timeline import timeline

SIZES = (8, 16, 24, 80)  # GiB of devices
_KEPT = "Kept for backward, by what made it (codes count where they are made)"
_LEFT = "Left as it is by compress"
_LEAST_SHARE = 0.002  # of what is kept; smaller rows are shown as one


@dataclass(frozen=True)
class Row:
    """What one operation of one module keeps for backward.

    Args:
        module: its name.
        operation: the function that made what is kept.
        before: bytes without compress.
        after: bytes with it.
        elements: values that are kept without it.
    """

    module: str
    operation: str
    before: int
    after: int
    elements: int


@dataclass(frozen=True, eq=False)
class MemoryReport:
    """Bytes of one training step of a model, without and with compress.

    Printed it is a table; a notebook shows it as one.

    Args:
        name: of the model.
        before: the step without compress.
        after: the step with it.
        notes: what compress left as it is, and why.
    """

    name: str
    before: StepMemory
    after: StepMemory
    notes: tuple[Note, ...]

    def rows(self) -> list[Row]:
        """What is kept, by module and operation; modules in the order of forward."""
        sums: dict[tuple[str, str], list[int]] = {}
        for column, step in enumerate((self.before, self.after)):
            for block in step.kept:
                found = sums.setdefault(block.place, [0, 0, 0])
                found[column] += block.allocated
                if column == 0:
                    found[2] += block.numel
        order = {module: index for index, (module, _) in reversed([*enumerate(sums)])}
        places = sorted(sums, key=lambda place: order[place[0]])
        return [Row(*place, *sums[place]) for place in places]

    def fits(self) -> dict[int, tuple[bool, bool]]:
        """GiB of a device: whether the step fits without, and with compress.

        What PyTorch itself and a fragmented allocator need is not in it.
        """
        needed = (self.before.needed, self.after.needed)
        return {
            size: (needed[0] <= size * 2**30, needed[1] <= size * 2**30)
            for size in SIZES
        }

    def timeline(self) -> list[dict[str, Any]]:
        """The steps for a picture: bytes alive by what made them, by stretches."""
        return [
            {
                "method": method,
                "index": index,
                "phase": stretch.phase,
                "module": stretch.module,
                "operation": stretch.operation,
                "made_by": maker,
                "nbytes": nbytes,
            }
            for method, step in (("eager", self.before), ("compress", self.after))
            for index, stretch in enumerate(timeline(step))
            for maker, nbytes in stretch.alive.items()
        ]

    def __str__(self) -> str:
        """Tables of at most 100 columns."""
        return text(self._heading, self._tables())

    def _repr_html_(self) -> str:
        return html(self._heading, self._tables())

    @property
    def _heading(self) -> str:
        return f"One training step of {self.name}"

    def _tables(self) -> list[Table]:
        tables = [
            Table("", self._summary(), names=1),
            Table(_KEPT, self._details(), names=2),
        ]
        if self.notes:
            tables.append(Table(_LEFT, self._left_alone(), names=4))
        return tables

    def _summary(self) -> list[list[str]]:
        rows = [["", "eager", "compress"]]
        for name, attribute in (
            ("saved: kept for backward", "saved"),
            ("step peak: the most a step makes", "peak"),
            ("resident: model and data", "resident"),
            ("state of the optimiser, caches", "state"),
            ("needed: peak, resident and state", "needed"),
        ):
            both = (getattr(step, attribute) for step in (self.before, self.after))
            rows.append([name, *map(size, both)])
        for gibibytes, fit in self.fits().items():
            answers = ("yes" if one else "no" for one in fit)
            rows.append([f"fits in {gibibytes} GiB", *answers])
        return rows

    def _details(self) -> list[list[str]]:
        header = ["module", "operation", "eager", "share", "bits", "compress", "bits"]
        table, small = [header], []
        for row in self.rows():
            if max(row.before, row.after) < _LEAST_SHARE * self.before.saved:
                small.append(row)
            else:
                name = [short(row.module), short(row.operation)]
                table.append([*name, *self._numbers(row)])
        if small:
            sums = (sum(row.before for row in small), sum(row.after for row in small))
            numbers = self._numbers(Row("", "", *sums, elements=0))
            table.append([f"{len(small)} others", "", *numbers])
        return table

    def _numbers(self, row: Row) -> list[str]:
        bits = [
            f"{8 * nbytes / row.elements:.1f}" if row.elements and nbytes else ""
            for nbytes in (row.before, row.after)
        ]
        share = f"{row.before / max(1, self.before.saved):.1%}"
        return [size(row.before), share, bits[0], size(row.after), bits[1]]

    def _left_alone(self) -> list[list[str]]:
        sums: dict[tuple[str, str, str], int] = defaultdict(int)
        for note in self.notes:
            sums[note.module, note.operation, note.reason] += note.nbytes
        table = [["module", "operation", "bytes", "why"]]
        for (module, operation, reason), nbytes in sorted(
            sums.items(), key=lambda item: -item[1]
        ):
            table.append([short(module), short(operation), size(nbytes), reason])
        return table


def memory_report(
    model: nn.Module,
    *inputs: Any,
    config: CompressionConfig | None = None,
    loss: Loss = mean_square,
    optimizer: MakeOptimizer | None = torch.optim.Adam,
    fake: bool = True,
    **named_inputs: Any,
) -> MemoryReport:
    """Tell the memory of a training step of a model, without and with `compress`.

    Neither the model nor the input is touched. Both may be larger than this machine:
    tensors on the device "meta" have a shape and nothing else. A graph's indices should
    have values all the same, where the model looks at them: it may drop self-loops.

    Args:
        model: compressed or not, in training mode.
        inputs: what it is called with; dense, edge_index, or sparse.
        config: of `compress`, if the model is not compressed.
        loss: of what the model returns, a tensor (); by default the mean square.
        optimizer: makes one of parameters; None for none.
        fake: False takes the step itself, on a copy of the model.
        named_inputs: what it is called with by name.

    Raises:
        ValueError: if the model is not in training mode, is compressed and a config is
            given as well, or if the step depends on values that are not there.
    """
    if not model.training:
        raise ValueError("the model is in evaluation mode; call model.train() before")
    attachment = attachment_of(model)
    if attachment is not None and config is not None:
        raise ValueError(
            "the model is compressed already and has a config; call decompress() on it "
            "before, or leave config out"
        )
    steps: list[StepMemory] = []
    notes: tuple[Note, ...] = ()
    for is_after in (False, True):
        fakes = Fakes(_device(model)) if fake else None
        copied = copy.deepcopy(model) if fakes is None else fakes.model(model)
        if is_after and attachment is None:
            compress(copied, config)
        if not is_after and attachment is not None:
            decompress(copied)
        if fakes is None:
            step = follow_step(copied, inputs, named_inputs, loss, optimizer)
        else:
            given, named = fakes.values((inputs, named_inputs))
            largest = max((b.numel for step in steps for b in step.kept), default=0)
            with fakes.entered(), shortened(largest):
                step = follow_step(copied, given, named, loss, optimizer)
        steps.append(step)
        if (attached := attachment_of(copied)) is not None:
            notes = tuple(attached.notes)
    return MemoryReport(type(model).__name__, steps[0], steps[1], notes)


def _device(model: nn.Module) -> torch.device:
    return next((one.device for one in model.parameters()), torch.device("cpu"))
