"""Seconds of work on a device, where a host clock would time the host.

A call on a GPU returns once its work is queued. A host clock around one call measures
guards and launches, and events around one call measure the same where the device waits
for the host. So each sample of a kernel is taken as follows:

1. The stream is filled with work of no concern, long enough for 2.
2. An event, the calls, an event are queued.
3. If the first event has not been reached when the last is queued, the device has run
   the calls without waiting for the host, and the time between the events is its own.
   If it has, the sample is taken again behind more work; after TRIALS it stays as it
   is and says so.

The calls of a sample take their buffers in turn, and what they return lives until the
sample ends, so that no call finds its memory in the cache. The filling evicts what the
sample before has left there.

On a CPU a call's time is that of a host clock around it: the same path but the clock.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline_src.training.meters import measure_time

FILL_BYTES = 2**30  # larger than any cache; some 0.3 ms on a fast device
MOST_LEAD = 0.03  # seconds
MOST_FILLS = 200  # in a lead, where a stream takes a thousand launches
MIN_CALLS = 8  # in a sample: far more than the resolution of an event
TRIALS = 4  # to get ahead of the device


@dataclass
class Timed:
    """A call on each of several buffers, and the seconds it took.

    Args:
        labels: what the row of results says of it.
        calls: the same call on one buffer after another.
        nbytes: that one call must read and write.
    """

    labels: dict[str, Any]
    calls: Sequence[Callable[[], object]]
    nbytes: int
    device_seconds: list[float] = field(default_factory=list)  # of one call
    host_seconds: list[float] = field(default_factory=list)  # to queue one call
    host_bound: int = 0  # samples in which the device waited for the host

    def forget(self) -> None:
        """Drop the samples so far: they were warming up."""
        self.device_seconds.clear()
        self.host_seconds.clear()
        self.host_bound = 0


class Deadline:
    """Seconds that are left of a number of them."""

    def __init__(self, seconds: float) -> None:
        """Begin now."""
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left; negative afterwards."""
        return self._end - time.monotonic()


class DeviceClock:
    """Takes samples on one device."""

    def __init__(self, device: torch.device) -> None:
        """Find out how long the filling takes."""
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._filling: Tensor | None = None
        if self._on_gpu:
            self._filling = torch.empty(FILL_BYTES, dtype=torch.uint8, device=device)
            self._fill(4)
            seconds, _, _ = self._between_events([lambda: self._fill(4)], lead=0.0)
            self._fill_seconds = max(seconds / 4, 1e-6)

    def sample(self, timed: Timed) -> None:
        """Add one sample to timed."""
        if not self._on_gpu:
            seconds = measure_time(timed.calls[0], self._device)
            timed.device_seconds.append(seconds)
            timed.host_seconds.append(seconds)
            return
        number = max(MIN_CALLS, len(timed.calls))
        calls = list(itertools.islice(itertools.cycle(timed.calls), number))
        lead = 2 * timed.host_seconds[-1] * number if timed.host_seconds else 1e-3
        for _ in range(TRIALS):
            seconds, host, ahead = self._between_events(calls, min(lead, MOST_LEAD))
            if ahead:
                break
            lead = 2 * max(lead, host)
        timed.device_seconds.append(seconds / number)
        timed.host_seconds.append(host / number)
        timed.host_bound += not ahead

    def _fill(self, times: int) -> None:
        assert self._filling is not None
        for _ in range(times):
            self._filling.fill_(1)

    def _between_events(
        self, calls: Sequence[Callable[[], object]], lead: float
    ) -> tuple[float, float, bool]:
        """Seconds between the events and to queue the calls; was queueing first?"""
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        if lead:
            self._fill(min(MOST_FILLS, 1 + int(lead / self._fill_seconds)))
        begin.record()
        start = time.perf_counter()
        results = [call() for call in calls]
        end.record()
        host = time.perf_counter() - start
        ahead = not begin.query()
        torch.cuda.synchronize()
        del results
        return begin.elapsed_time(end) / 1e3, host, ahead


def take_turns(
    clock: DeviceClock,
    rivals: Sequence[Timed],
    *,
    warmup: int,
    repeats: int,
    deadline: Deadline,
) -> None:
    """Sample the rivals in turn, again and again: drifting clocks touch all alike.

    Where the deadline comes first, the samples so far stay.
    """
    for repeat in range(-warmup, repeats):
        for timed in rivals:
            if repeat == 0:
                timed.forget()
            clock.sample(timed)
        if deadline.left() < 0 and repeat >= 0:
            return


def buffers_beyond_cache(nbytes: int, device: torch.device) -> int:
    """How many tensors of nbytes are four times the device's cache; 2 at least."""
    if device.type != "cuda":
        return 1
    cache = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
    return max(2, -(-4 * cache // nbytes))
