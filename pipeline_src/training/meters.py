"""Seconds and bytes: the only place that touches a clock or the allocator.

Memory is read at the allocator, not estimated. On a GPU the caching allocator keeps the
books; on a CPU the profiler reports every allocation and release of tensor memory,
compiled kernels included, and the same sums are formed from these reports. CUDA's
allocator hands out multiples of 512 bytes, so each CPU allocation is rounded up to them
too: the same computation then shows the same bytes on both devices.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C._profiler import RecordScope
from torch.autograd import _enable_profiler
from torch.autograd.profiler import profile

ALLOCATION_UNIT = 512  # bytes; the granularity of CUDA's caching allocator
TIMED_ON_GPU = 0.02  # seconds between two events, whose resolution is 1e-6 at best
MOST_CALLS = 100  # between two events, however short

Result = TypeVar("Result")


@dataclass(frozen=True)
class MemoryUse:
    """What one call did to the memory of a device, in bytes.

    Args:
        held: allocated by the call and still alive when it returned.
        peak: the largest amount alive at once during the call, above what was alive
            when it began.
    """

    held: int
    peak: int


def allocated_bytes(nbytes: int) -> int:
    """What the allocator spends on one tensor of nbytes."""
    return -(-nbytes // ALLOCATION_UNIT) * ALLOCATION_UNIT


def resident_bytes(tensors: Iterable[Tensor]) -> int:
    """Allocated bytes behind tensors, each storage counted once."""
    sizes = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = allocated_bytes(storage.nbytes())
    return sum(sizes.values())


def measure_memory(
    call: Callable[[], Result], device: torch.device
) -> tuple[Result, MemoryUse]:
    """Run a call and report the memory it held and needed.

    Run it once before, so that compilation and lazy initialisation are not counted. The
    call must not release tensors that are older than it: a GPU books their bytes, but a
    CPU's profiler knows only those that were allocated while it was watching.
    """
    if device.type == "cuda":
        return _measure_cuda(call, device)
    return _measure_cpu(call)


def measure_time(
    call: Callable[[], object], device: torch.device, calls: int = 1
) -> float:
    """Seconds of one call, as the mean of a number of calls in a row.

    On a GPU they lie between two events of the stream, which is idle before: what the
    first waits for the host is counted, what later ones wait only where the host is
    the slower of the two, and the host's own waiting for the device never.
    """
    if device.type == "cuda":
        return _measure_cuda_time(call, device, calls)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def calls_to_time(seconds: float, device: torch.device) -> int:
    """How many calls of about these seconds are timed as one; 1 on a CPU.

    >>> gpu = torch.device("cuda")
    >>> calls_to_time(0.004, gpu), calls_to_time(1.0, gpu), calls_to_time(1e-6, gpu)
    (5, 1, 100)
    """
    if device.type != "cuda":
        return 1
    return min(MOST_CALLS, max(1, math.ceil(TIMED_ON_GPU / max(seconds, 1e-9))))


class StepClock:
    """Times repeated steps without making the device wait between them.

    Use as a context around each step. On a GPU it leaves events in the stream, which
    `median` reads once everything is done.
    """

    def __init__(self, device: torch.device) -> None:
        """Start with no steps."""
        self._on_gpu = device.type == "cuda"
        self._marks: list[Any] = []

    def __enter__(self) -> None:
        """Begin a step."""
        self._mark()

    def __exit__(self, *exception: object) -> None:
        """End a step."""
        self._mark()

    def median(self) -> float:
        """Median of the seconds per step; NaN without steps."""
        if not self._marks:
            return math.nan
        pairs = zip(self._marks[0::2], self._marks[1::2], strict=True)
        if not self._on_gpu:
            return statistics.median(end - start for start, end in pairs)
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) / 1e3 for start, end in pairs)

    def _mark(self) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())


def _measure_cuda_time(
    call: Callable[[], object], device: torch.device, calls: int
) -> float:
    begin = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3 / calls


def _measure_cuda(
    call: Callable[[], Result], device: torch.device
) -> tuple[Result, MemoryUse]:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    held = torch.cuda.memory_allocated(device) - before
    peak = torch.cuda.max_memory_allocated(device) - before
    return result, MemoryUse(held=held, peak=peak)


def _measure_cpu(call: Callable[[], Result]) -> tuple[Result, MemoryUse]:
    # The profiler's own log lines; read when the profiler is loaded.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # What torch.profiler is built on; that imports the compiler when it starts, which
    # takes longer than a short training.
    with _AllocationProfile(profile_memory=True, use_kineto=True) as profiler:
        result = call()
    alive: dict[int, int] = {}
    now = peak = 0
    for pointer, size in _cpu_events(profiler):
        if size > 0:
            alive[pointer] = allocated_bytes(size)
            now += alive[pointer]
        else:
            # A release of what the call did not allocate frees memory all the same.
            now -= alive.pop(pointer, allocated_bytes(-size))
        peak = max(peak, now)
    return result, MemoryUse(held=sum(alive.values()), peak=peak)


class _AllocationProfile(profile):
    """Records what is allocated and released, and no operation.

    A plain kernel takes a large graph in hundreds of thousands of operations: their
    records, which nothing here reads, would be more bytes than the training itself.
    """

    def _start_trace(self) -> None:
        """As of the base class, in the one scope that operations do not enter."""
        scopes = {RecordScope.LITE_INTERPRETER}  # an empty set would stand for all
        _enable_profiler(  # type: ignore[call-arg]  # the stub lacks the scopes
            self.config(create_trace_id=False), self.kineto_activities, scopes
        )


def _cpu_events(profiler: Any) -> list[tuple[int, int]]:
    """(address, bytes; negative for a release) of each CPU event, in order of time."""
    found: list[tuple[int, int, int]] = []
    nodes = list(profiler.kineto_results.experimental_event_tree())
    while nodes:
        node = nodes.pop()
        nodes += node.children
        if node.name == "[memory]" and str(node.extra_fields.device) == "cpu":
            fields = node.extra_fields
            found.append((node.start_time_ns, fields.ptr, fields.alloc_size))
    # The walk was backwards; events of one nanosecond keep the order of recording.
    found.sort(key=lambda event: event[0], reverse=True)
    return [(pointer, size) for _, pointer, size in reversed(found)]
