import gc
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline_src.quant.bitmask import pack_mask
from pipeline_src.training import meters
from pipeline_src.training.meters import (
    MemoryUse,
    StepClock,
    allocated_bytes,
    measure_memory,
    measure_time,
    resident_bytes,
)

CPU = torch.device("cpu")


@given(nbytes=st.integers(0, 2**40))
def test_an_allocation_is_the_next_multiple_of_512_bytes(nbytes):
    allocated = allocated_bytes(nbytes)
    assert allocated % 512 == 0
    assert nbytes <= allocated < nbytes + 512


def test_held_and_peak_of_a_sequence_counted_by_hand():
    """4,000 and 1,200 bytes live together; then 1,200 and 4: in units of 512."""

    def call():
        first = torch.empty(1000)  # 8 units
        second = torch.empty(300)  # 3 units, 11 at once
        del first
        third = torch.empty(1)  # 1 unit, 4 at once
        return second, third

    result, use = measure_memory(call, CPU)
    assert [tensor.nbytes for tensor in result] == [1200, 4]
    assert use == MemoryUse(held=4 * 512, peak=11 * 512)


def test_a_measurement_leaves_nothing_to_the_collector():
    """Its events are tens of MiB; a search for the least peak measures hundreds."""
    gc.collect()
    gc.disable()
    try:
        measure_memory(lambda: torch.empty(1), CPU)
        left = [one for one in gc.get_objects() if "profile" in type(one).__name__]
    finally:
        gc.enable()
    assert not left


def test_no_operation_is_recorded():
    """Their records would be more bytes than a training on a large graph."""
    with meters._AllocationProfile(profile_memory=True, use_kineto=True) as profiler:
        (torch.ones(3) + 1).sum()
    tree = profiler.kineto_results.experimental_event_tree()
    assert {event.name for event in tree} == {"[memory]"}


def test_an_address_that_is_used_again_counts_as_long_as_it_lives():
    def call():
        for _ in range(5):
            last = torch.empty(256)
            del last  # the allocator hands the same bytes out again
        return torch.empty(256)

    assert measure_memory(call, CPU)[1] == MemoryUse(held=1024, peak=1024)


def test_releasing_what_an_earlier_measured_call_held_lowers_the_peak():
    """8 units go, 4 and 2 come: nothing is above what was alive in the beginning."""
    box = [measure_memory(lambda: torch.empty(1000), CPU)[0]]

    def call():
        box.clear()
        return torch.empty(512), torch.empty(256)

    assert measure_memory(call, CPU)[1] == MemoryUse(held=6 * 512, peak=0)


def test_views_are_not_counted_twice():
    def call():
        whole = torch.empty(30, 40)
        return whole.view(-1), whole[5:], whole.T, whole.detach()

    assert measure_memory(call, CPU)[1] == MemoryUse(held=4 * 1200 + 320, peak=5120)


def test_temporaries_and_what_autograd_keeps_are_seen():
    """One unit each: the factor, which its square keeps; the square; the loss."""
    x = torch.ones(100, requires_grad=True)

    def call():
        factor = x + x
        return (factor * factor).sum()

    loss, use = measure_memory(call, CPU)
    assert use == MemoryUse(held=2 * 512, peak=3 * 512)
    loss.backward()
    assert torch.equal(x.grad, torch.full((100,), 8.0))


def test_a_call_that_allocates_nothing_costs_nothing():
    x = torch.ones(100)
    assert measure_memory(x.zero_, CPU)[1] == MemoryUse(held=0, peak=0)


def test_buffers_of_a_compiled_kernel_are_seen():
    """Fused packing makes its output and nothing else; plain packing makes more."""
    mask = torch.arange(8 * 4096) % 3 == 0
    pack_mask(mask, "true")
    packed, fused = measure_memory(lambda: pack_mask(mask, "true"), CPU)
    assert packed.nbytes == 4096
    assert fused == MemoryUse(held=4096, peak=4096)
    plain = measure_memory(lambda: pack_mask(mask, "false"), CPU)[1]
    assert plain.held == 4096
    assert plain.peak >= 2 * 4096


def test_events_of_one_nanosecond_count_in_the_order_of_their_recording(monkeypatch):
    """A coarse clock: an address is taken, released and taken again at one time."""

    def event(size):
        fields = SimpleNamespace(device="cpu", ptr=64, alloc_size=size)
        return SimpleNamespace(
            name="[memory]", start_time_ns=7, extra_fields=fields, children=[]
        )

    function = SimpleNamespace(name="call", children=[event(900), event(-900)])
    tree = SimpleNamespace(experimental_event_tree=lambda: [function, event(100)])

    class Profile:
        kineto_results = tree

        def __init__(self, **options):
            assert options["profile_memory"]

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            return None

    monkeypatch.setattr(meters, "_AllocationProfile", Profile)
    use = measure_memory(lambda: None, CPU)[1]
    assert use == MemoryUse(held=512, peak=1024)


def test_resident_bytes_count_each_storage_once():
    whole = torch.empty(30, 40)  # 4,800 bytes: 10 units
    other = torch.empty(3, dtype=torch.int64)  # 1 unit
    nothing = torch.empty(0)
    assert resident_bytes([whole, whole[3:], whole.T, other, nothing]) == 11 * 512
    assert resident_bytes([whole[29:]]) == 10 * 512  # a view keeps all of it alive
    assert resident_bytes([]) == 0


@pytest.fixture
def clock(monkeypatch):
    """Let the clock show given seconds, one after another."""

    def set_clock(*seconds):
        times = iter(seconds)
        fake = SimpleNamespace(perf_counter=lambda: next(times))
        monkeypatch.setattr(meters, "time", fake)

    return set_clock


def test_median_is_that_of_the_steps_without_what_lies_between(clock):
    clock(0, 3, 10, 11, 100, 108)  # steps of 3, 1 and 8 seconds
    steps = StepClock(CPU)
    for _ in range(3):
        with steps:
            pass
    assert steps.median() == 3.0


def test_median_of_an_even_number_of_steps_is_between_the_middle_two(clock):
    clock(0, 1, 2, 6)
    steps = StepClock(CPU)
    for _ in range(2):
        with steps:
            pass
    assert steps.median() == 2.5


def test_without_steps_the_median_is_not_a_number():
    assert math.isnan(StepClock(CPU).median())


def test_an_exception_leaves_the_step_and_ends_it(clock):
    clock(0, 4)
    steps = StepClock(CPU)
    with pytest.raises(KeyError), steps:
        raise KeyError
    assert steps.median() == 4.0


def test_seconds_are_those_around_the_call(clock):
    clock(5.0, 7.5)
    calls = []
    assert measure_time(lambda: calls.append(1), CPU) == 2.5
    assert calls == [1]
