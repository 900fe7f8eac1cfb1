"""From a case to the modules that a GPU would run, and whether they compute the same.

Runs in a process of its own with TRITON_INTERPRET=1, because Triton decides when it is
imported whether kernels are interpreted; machine code (machine_code.py) is made in
another one.

Equality is to the bit, sums too: kernels add rows in the order of the plain function.
"""

import json
import re
import sys
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.gpu_proof.cases import Case, Size, all_cases
from tests.gpu_proof.planted import planted_cases
from tests.gpu_proof.pretended_cuda import (
    Launch,
    Modules,
    Plan,
    clones_of,
    fake_mode,
    interpreted,
    plan_of,
    pretended_device,
    real_inputs,
    tensors_of,
)
from tests.gpu_proof.recording import Call, kernels, recorded, results_of

WRITTEN_FOR = "sm_90"


@dataclass
class Generated:
    """What is known of a case before its kernels are compiled."""

    case: str
    kernel: str
    faults: list[str] = field(default_factory=list)
    modules: int = 0  # for the sizes that differ in rows alone
    launches: list[dict[str, Any]] = field(default_factory=list)  # kernel, numels
    kernels: dict[str, str] = field(default_factory=dict)  # text by name
    extern_calls: list[str] = field(default_factory=list)
    values: int = 0  # of the largest tensor, all its parts that are given
    bytes_needed: int = 0  # what is read, and what is written, once
    bytes_moved: int = 0  # by all launches
    bytes_read_again: int = 0  # by loops that load what they have loaded


def generate(case: Case) -> Generated:
    """Write the modules of a case and run them in the interpreter."""
    found = Generated(case.name, case.kernel)
    try:
        _generate(case, found)
    except Exception as error:
        lines = traceback.format_exception_only(error)
        found.faults.append("not generated: " + "".join(lines).strip()[:500])
    return found


def _generate(case: Case, found: Generated) -> None:
    modules = Modules(kernels()[case.kernel].fused, WRITTEN_FOR)
    calls = _fake_calls(case, case.large)
    assert calls, f"{case.name} never calls {case.kernel}"
    asked = [modules.ask(call.arguments) for call in calls]
    largest = max(
        range(len(calls)), key=lambda i: _numel(calls[i].arguments)
    )  # the body, not the tail
    source = modules.sources[asked[largest].index]
    _count(plan_of(source, asked[largest].inputs), found)
    found.values = _values(calls[largest])
    for size in case.more[:1]:
        _compare(case, size, modules, found)
    for size in case.more[1:]:
        for call in _fake_calls(case, size):
            modules.ask(call.arguments)
    found.modules = len(modules.sources)
    for size in case.odd:
        _compare(case, size, modules, found)


def _fake_calls(case: Case, size: Size) -> list[Call]:
    with pretended_device(WRITTEN_FOR), fake_mode(), recorded(False) as calls:
        case.operate("cuda", size)
    return [call for call in calls if call.kernel == case.kernel]


def _numel(tree: Any) -> int:
    return max(x.numel() for x in tensors_of(tree))


def _values(call: Call) -> int:
    parts = {
        (_storage(x), x.storage_offset(), x.shape): x.numel()
        for x in tensors_of([call.arguments, call.results])
    }
    count: Counter[int] = Counter()
    for (storage, _, _), numel in parts.items():
        count[storage] += numel
    return max(count.values())


def _compare(case: Case, size: Size, modules: Modules, found: Generated) -> None:
    torch.manual_seed(0)
    with recorded(True) as calls:
        case.operate("cpu", size)
    real = [call for call in calls if call.kernel == case.kernel]
    fake = _fake_calls(case, size)
    if not real:
        found.faults.append(f"size {size} runs no compiled kernel")
    for one, other in zip(real, fake, strict=True):
        asked = modules.ask(other.arguments)
        arguments = clones_of(one.arguments)
        inputs = real_inputs(asked, other.arguments, arguments)
        outputs = interpreted(modules.sources[asked.index], inputs)
        got = tensors_of(outputs) + tensors_of(arguments)
        found.faults += _differences(size, results_of(one), got)


def _differences(size: Size, wanted: list[Tensor], got: list[Tensor]) -> list[str]:
    if len(wanted) != len(got):
        return [f"size {size}: {len(got)} results instead of {len(wanted)}"]
    faults = []
    for i, (one, other) in enumerate(zip(wanted, got, strict=True)):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            faults.append(f"size {size}: result {i} has another shape or type")
        elif not _same_bits(one, other):
            difference = (one.double() - other.double()).abs().max().item()
            count = int((one != other).sum())
            faults.append(
                f"size {size}: result {i} differs in {count} of {one.numel()} "
                f"values, by up to {difference:.3g}"
            )
    return faults


def _same_bits(one: Tensor, other: Tensor) -> bool:
    def as_bytes(x: Tensor) -> Tensor:
        return x.contiguous().view(-1).view(torch.uint8)

    return one.numel() == 0 or torch.equal(as_bytes(one), as_bytes(other))


# --- bytes and launches ---------------------------------------------------------------


def _count(plan: Plan, found: Generated) -> None:
    """Bytes that launches move, against each tensor read once and written once."""
    found.kernels = plan.kernels
    found.extern_calls = plan.extern_calls
    inputs = {_storage(x) for x in tensors_of(plan.inputs)}
    results = inputs | {_storage(x) for x in tensors_of(plan.outputs)}
    read: dict[int, int] = {}
    written: dict[int, int] = {}
    for launch in plan.launches:
        numels = {
            name: int(value)
            for name, value in launch.arguments.items()
            if name.endswith("numel")
        }
        found.launches.append({"kernel": launch.kernel, **numels})
        for place, x, loads, stores in _accesses(launch, plan.kernels):
            size = _size(x)
            found.bytes_moved += size * (bool(loads) + bool(stores))
            found.bytes_read_again += size * max(0, loads - 1)
            if loads and place in inputs:
                read[place] = max(size, read.get(place, 0))
            if stores and place in results:
                written[place] = max(size, written.get(place, 0))
    found.bytes_needed = sum(read.values()) + sum(written.values())


def _accesses(
    launch: Launch, texts: dict[str, str]
) -> list[tuple[int, Tensor, int, int]]:
    """Storage, tensor, loops that load it, and whether it is stored."""
    passes = texts[launch.kernel].split("for r0_offset")
    found = []
    for name, given in launch.arguments.items():
        if isinstance(given, Tensor):
            loads = sum(bool(re.search(rf"tl\.load\({name} ", part)) for part in passes)
            access = rf"tl\.(?:store|atomic_\w+)\({name} "
            stores = int(bool(re.search(access, texts[launch.kernel])))
            found.append((_storage(given), given, loads, stores))
    return found


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _size(x: Tensor) -> int:
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def main() -> None:
    """Read names of cases, one a line; write what is found, one JSON object a line."""
    torch.set_num_threads(1)
    cases = all_cases() | planted_cases()
    for line in sys.stdin:
        print(json.dumps(asdict(generate(cases[line.strip()]))), flush=True)


if __name__ == "__main__":
    main()
