"""The memory of a step as a picture shows it: what is alive, by what made it."""

from collections import defaultdict
from dataclasses import dataclass

from pipeline_src.compression.memory.live_bytes import UPDATE, Block, Place
from pipeline_src.compression.memory.step import StepMemory

GRADIENTS = "gradients"  # and whatever else backward and update make
SCRATCH = "inside kernels"


@dataclass(frozen=True)
class Stretch:
    """Operations in a row of one place and phase.

    Args:
        module: name of it.
        operation: name of the function.
        phase: "forward", "backward" or "update".
        alive: bytes by what made them, at the moment of the stretch that needs most:
            an operation of forward, GRADIENTS or SCRATCH.
    """

    module: str
    operation: str
    phase: str
    alive: dict[str, int]


def timeline(step: StepMemory) -> list[Stretch]:
    """A step in stretches, in order."""
    stretches: list[Stretch] = []
    now: dict[str, int] = defaultdict(int)
    changes = iter(step.changes)
    change = next(changes, None)
    last, highest = None, -1
    for index, moment in enumerate(step.moments):
        while change is not None and change.moment <= index:
            now[_maker(change.block)] += change.nbytes
            change = next(changes, None)
        # An update is one stretch, whatever an optimiser does for each parameter.
        place = Place(UPDATE, "") if moment.phase == "update" else moment.place
        key = (place, moment.phase)
        if key == last and moment.peak <= highest:
            continue
        alive = {name: size for name, size in now.items() if size > 0}
        if (inside := moment.peak - sum(alive.values())) > 0:
            alive[SCRATCH] = inside
        if key == last:
            stretches.pop()
        stretches.append(Stretch(*place, moment.phase, alive))
        last, highest = key, moment.peak
    return stretches


def _maker(block: Block) -> str:
    return block.place.operation if block.phase == "forward" else GRADIENTS
