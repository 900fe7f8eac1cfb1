"""Samples on a device that is made up of two clocks."""

import pytest
import torch
from made_up_device import Device

from pipeline_src.measuring.gpu import clock
from pipeline_src.measuring.gpu.clock import (
    Deadline,
    DeviceClock,
    Timed,
    buffers_beyond_cache,
    take_turns,
)
from pipeline_src.training import meters
from pipeline_src.training.meters import measure_time

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def device(monkeypatch):
    made_up = Device()
    made_up.use(monkeypatch, meters, clock)
    monkeypatch.setattr(clock, "torch", FakeTorch(made_up))
    return made_up


class FakeTorch:
    """Torch, but that the filling is made up."""

    def __init__(self, device):
        self.empty = device.filling
        self.cuda, self.device, self.uint8 = torch.cuda, torch.device, torch.uint8


def test_a_sample_is_the_time_of_the_device_however_slow_the_host_is(device):
    """50 us to start what takes 10: a host clock, or bare events, would see 50."""
    timed = Timed({}, [lambda: device.queue(50e-6, 10e-6)] * 3, 0)
    bare = measure_time(timed.calls[0], CUDA, calls=100)
    assert bare == pytest.approx(50e-6, rel=0.05)
    device_clock = DeviceClock(CUDA)
    for _ in range(5):
        device_clock.sample(timed)
    assert timed.device_seconds == pytest.approx([10e-6] * 5)
    assert timed.host_seconds == pytest.approx([50e-6] * 5, rel=0.01)
    assert timed.host_bound == 0


def test_a_call_that_waits_for_the_device_is_said_to_be_bound_by_the_host(device):
    def call():
        device.queue(5e-6, 10e-6)
        device.synchronize()

    timed = Timed({}, [call], 0)
    DeviceClock(CUDA).sample(timed)
    assert timed.host_bound == 1


def test_a_first_call_that_compiles_queues_no_hours_of_filling(device):
    """A minute once; then the lead is that of what follows."""
    seconds = iter([60.0])
    timed = Timed({}, [lambda: device.queue(next(seconds, 1e-5), 1e-5)], 0)
    device_clock = DeviceClock(CUDA)
    before = device.host
    device_clock.sample(timed)
    assert device.host - before < 60 + clock.TRIALS * (clock.MOST_LEAD + 1e-3) + 1e-2
    assert timed.device_seconds == pytest.approx([1e-5])


def test_buffers_take_turns_and_results_live_until_the_sample_ends(device):
    alive, most, order = set(), [0], []

    class Result:
        def __init__(self):
            alive.add(id(self))
            most[0] = max(most[0], len(alive))

        def __del__(self):
            alive.discard(id(self))

    def call(buffer):
        device.queue(1e-5, 1e-5)
        order.append(buffer)
        return Result()

    calls = [lambda buffer=buffer: call(buffer) for buffer in range(3)]
    DeviceClock(CUDA).sample(Timed({}, calls, 0))
    assert order[-8:] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert most == [clock.MIN_CALLS]
    assert not alive


def test_a_mean_of_many_calls_hides_what_the_first_waits_for(device):
    """10 us to start 30 us of work: the stream waits once, for the first."""

    def call():
        device.queue(10e-6, 30e-6)

    for calls in (1, 10):
        expected = (10e-6 + calls * 30e-6) / calls
        assert measure_time(call, CUDA, calls) == pytest.approx(expected)


def test_rivals_take_turns_and_warming_up_is_forgotten(monkeypatch):
    order = []
    rivals = [Timed({}, [lambda name=name: order.append(name)], 0) for name in "ab"]
    take_turns(DeviceClock(CPU), rivals, warmup=2, repeats=3, deadline=Deadline(1000.0))
    assert "".join(order) == "ab" * 5
    assert [len(timed.device_seconds) for timed in rivals] == [3, 3]


def test_after_the_deadline_one_sample_of_each_is_there():
    rivals = [Timed({}, [lambda: None], 0) for _ in range(2)]
    take_turns(DeviceClock(CPU), rivals, warmup=1, repeats=9, deadline=Deadline(-1.0))
    assert [len(timed.device_seconds) for timed in rivals] == [1, 1]


def test_buffers_together_are_four_times_the_cache(monkeypatch):
    class Properties:
        L2_cache_size = 50 * 2**20

    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: Properties()
    )
    assert buffers_beyond_cache(90 * 2**20, CUDA) == 3
    assert buffers_beyond_cache(2**30, CUDA) == 2  # one would be found in the cache
    assert buffers_beyond_cache(2**20, CUDA) == 200
    assert buffers_beyond_cache(2**20, CPU) == 1
