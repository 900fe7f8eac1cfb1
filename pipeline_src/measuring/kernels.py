"""Seconds of the block-wise kernels, beside those of moving the same tensor.

What a kernel cannot avoid is to read its input and to write its output, so two moves
of the same tensor are the measure: `copy`, into memory that is there, and `clone`,
into fresh memory, as a kernel's result is. On a CPU the pages of fresh memory cost
several times what the copying does.

The machine's speed drifts, so all calls take turns: for each width and block size a
copy, a clone, and one call of each implementation, again and again. Ratios of medians
then mean something even where seconds do not. On a GPU a sample is the mean of several
calls on buffers that take turns, between events that wait for no host (gpu/clock.py).
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from pipeline_src.measuring.gpu.clock import DeviceClock, Timed
from pipeline_src.measuring.gpu.kernel_calls import (
    IMPLEMENTATIONS,
    MOVES,
    OPERATIONS,
    buffers_of,
    kernels_on,
    moves_of,
)
from pipeline_src.quant.fusion import resolve_compile
from pipeline_src.records import datasets
from pipeline_src.records.devices import describe_device, resolve_device

log = logging.getLogger(__name__)


def benchmark_kernels(
    rows: int,
    width: int,
    bits: Sequence[int],
    block_sizes: Sequence[int],
    *,
    warmup: int,
    repeats: int,
    device: str,
    compile: str,
    threads: int,
    source_digest: str = "not recorded",
) -> xr.Dataset:
    """Time every implementation at every width and block size.

    Args:
        rows: of the tensor, whose values are normal.
        width: values in a row.
        bits: widths of a code.
        block_sizes: values that share a zero point and a scale.
        warmup: calls of each before the clock counts.
        repeats: timed calls of each.
        device: "auto", "cpu" or "cuda".
        compile: where "false", compiled kernels are not measured.
        threads: recorded as provenance.
        source_digest: recorded as provenance.

    Returns:
        kernel_time, seconds, (implementation, operation, bits, block_size, repeat);
        move_time, seconds, (move, bits, block_size, repeat), taken between the others;
        kept_memory, bytes, (implementation, bits, block_size); and value_memory, the
        bytes of the tensor. NaN where there is no such kernel.
    """
    place = resolve_device(device)
    compiled = resolve_compile(compile, place) != "false"
    buffers = buffers_of((rows, width), place)
    grid = (len(bits), len(block_sizes))
    kernel_time = np.full(
        (len(IMPLEMENTATIONS), len(OPERATIONS), *grid, repeats), math.nan
    )
    move_time = np.full((len(MOVES), *grid, repeats), math.nan)
    kept_memory = np.full((len(IMPLEMENTATIONS), *grid), math.nan)
    timed: list[tuple[Timed, np.ndarray]] = []
    moves = moves_of(buffers)
    for at in np.ndindex(grid):
        for index, move in enumerate(moves):
            timed.append((move, move_time[index, *at]))
        setting = bits[at[0]], block_sizes[at[1]]
        for kernel in kernels_on(buffers, *setting, compiled):
            index = IMPLEMENTATIONS.index(kernel.labels["implementation"])
            operation = OPERATIONS.index(kernel.labels["operation"])
            kept_memory[index, *at] = kernel.labels["kept_bytes"]
            timed.append((kernel, kernel_time[index, operation, *at]))
    clock = DeviceClock(place)
    for repeat in range(-warmup, repeats):
        for call, seconds in timed:
            clock.sample(call)
            if repeat >= 0:
                seconds[repeat] = call.device_seconds[-1]
        log.info("round %d of %d", repeat + 1, repeats)
    return _kernel_record(
        {
            "kernel_time": kernel_time,
            "move_time": move_time,
            "kept_memory": kept_memory,
            "value_memory": np.float64(buffers[0].nbytes),
        },
        {
            "implementation": IMPLEMENTATIONS,
            "operation": OPERATIONS,
            "move": MOVES,
            "bits": bits,
            "block_size": block_sizes,
            "repeat": range(repeats),
        },
        datasets.describe_provenance(source_digest, describe_device(place), threads),
    )


def _kernel_record(
    values: Mapping[str, np.ndarray | np.float64],
    labels: Mapping[str, Sequence[Any]],
    provenance: Mapping[str, Any],
) -> xr.Dataset:
    grid = ("bits", "block_size")
    meanings = {
        "kernel_time": (
            ("implementation", "operation", *grid, "repeat"),
            datasets.attributes("s", "time of one call"),
        ),
        "move_time": (
            ("move", *grid, "repeat"),
            datasets.attributes("s", "time to move the tensor once"),
        ),
        "kept_memory": (
            ("implementation", *grid),
            datasets.attributes("byte", "memory of the codes and their metadata"),
        ),
        "value_memory": ((), datasets.attributes("byte", "memory of the tensor")),
    }
    names = {
        "implementation": ("1", "implementation"),
        "operation": ("1", "operation"),
        "move": ("1", "way to move the tensor"),
        "bits": ("bit", "width of a code"),
        "block_size": ("1", "values that share a zero point and a scale"),
        "repeat": ("1", "repeat"),
    }
    coords = {
        name: (name, np.asarray(labels[name]), datasets.attributes(*meaning))
        for name, meaning in names.items()
    }
    variables = {
        name: (dims, values[name], attributes)
        for name, (dims, attributes) in meanings.items()
    }
    attrs = {"provenance": json.dumps(provenance, sort_keys=True)}
    return xr.Dataset(variables, coords, attrs)
