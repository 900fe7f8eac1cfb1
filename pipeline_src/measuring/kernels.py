"""Seconds of the block-wise kernels, beside those of moving the same tensor.

What a kernel cannot avoid is to read its input and to write its output, so two moves
of the same tensor are the measure: `copy`, into memory that is there, and `clone`,
into fresh memory, as a kernel's result is. On a CPU the pages of fresh memory cost
several times what the copying does.

The machine's speed drifts, so all calls take turns: for each width and block size a
copy, a clone, and one call of each implementation, again and again. Ratios of medians
then mean something even where seconds do not.
"""

import functools
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pipeline_src.measuring.rivals import RIVALS, Kernels, rival_kernels
from pipeline_src.quant.blockwise import compress_blocks, decompress_blocks
from pipeline_src.quant.fusion import resolve_compile
from pipeline_src.records import datasets
from pipeline_src.records.devices import describe_device, resolve_device
from pipeline_src.training.meters import measure_time

log = logging.getLogger(__name__)

IMPLEMENTATIONS = ("compiled", "plain", *RIVALS)
OPERATIONS = ("compress", "decompress")
MOVES = ("copy", "clone")


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
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator).to(place)
    target = torch.empty_like(x)
    moves: dict[str, Callable[[], object]] = {
        "copy": functools.partial(target.copy_, x),
        "clone": x.clone,
    }
    grid = (len(bits), len(block_sizes))
    kernel_time = np.full(
        (len(IMPLEMENTATIONS), len(OPERATIONS), *grid, repeats), math.nan
    )
    move_time = np.full((len(MOVES), *grid, repeats), math.nan)
    kept_memory = np.full((len(IMPLEMENTATIONS), *grid), math.nan)
    timed: list[tuple[Callable[[], object], np.ndarray]] = []
    for at in np.ndindex(grid):
        setting = bits[at[0]], block_sizes[at[1]]
        for index, name in enumerate(MOVES):
            timed.append((moves[name], move_time[index, *at]))
        for index, kernels in enumerate(_implementations(x, *setting, compiled)):
            if kernels is not None:
                kept = kernels.compress()
                tensors = kernels.kept_tensors(kept)
                kept_memory[index, *at] = sum(tensor.nbytes for tensor in tensors)
                decompress = functools.partial(kernels.decompress, kept)
                timed.append((kernels.compress, kernel_time[index, 0, *at]))
                timed.append((decompress, kernel_time[index, 1, *at]))
    for repeat in range(-warmup, repeats):
        for call, seconds in timed:
            taken = measure_time(call, place)
            if repeat >= 0:
                seconds[repeat] = taken
        log.info("round %d of %d", repeat + 1, repeats)
    return _kernel_record(
        {
            "kernel_time": kernel_time,
            "move_time": move_time,
            "kept_memory": kept_memory,
            "value_memory": np.float64(x.nbytes),
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


def _implementations(
    x: Tensor, bits: int, block_size: int, compiled: bool
) -> list[Kernels | None]:
    """The kernels in the order of IMPLEMENTATIONS; None where there is none."""
    return [
        _own_kernels(x, bits, block_size, "true") if compiled else None,
        _own_kernels(x, bits, block_size, "false"),
        *(rival_kernels(name, x, bits, block_size, compiled) for name in RIVALS),
    ]


def _own_kernels(x: Tensor, bits: int, block_size: int, compile: str) -> Kernels:
    seed = torch.zeros((), dtype=torch.int32, device=x.device)
    return Kernels(
        lambda: compress_blocks(x, seed, bits, block_size, compile=compile),
        lambda kept: decompress_blocks(
            kept[0], kept[1], kept[2], x.shape, bits, compile=compile
        ),
        tuple,
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
