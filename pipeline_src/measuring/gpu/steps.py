"""Training steps on a device: seconds in turns, bytes at the allocator, launches.

A step is timed by events around as many steps as fill some time, waits for the host
included: they are part of what a user waits for. Bytes that books foretell from counts
alone stand beside those that the allocator hands out.
"""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType

from pipeline_src.graphs.graph import Graph
from pipeline_src.graphs.sizes import GraphSizes
from pipeline_src.measuring.byte_books import BOOKED_POLICIES, saved_bytes
from pipeline_src.measuring.gpu.clock import Deadline
from pipeline_src.measuring.gpu.graphs import drawn_graph
from pipeline_src.measuring.gpu.results import Rows, note, quartiles
from pipeline_src.training.meters import calls_to_time, measure_time
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec
from pipeline_src.training.step_memory import measure_step_memory
from pipeline_src.training.trainer import Trainer

COLUMNS = (
    *("device", "graph", "nodes", "entries", "model", "method", "state"),
    *("first_step_s", "samples", "steps_per_sample"),
    *("step_ms_q1", "step_ms", "step_ms_q3", "step_over_fp32", "launches"),
    *("saved_mib", "booked_saved_mib", "peak_mib", "resident_mib"),
)
FP32 = MethodSpec("fp32", "FP32", "full")
EXACT = MethodSpec("exact", "EXACT", "exact", 2, 8)
LEAN = MethodSpec("lean2", "lean INT2", "lean", 2, rows_per_block=8)
METHODS = (
    FP32,
    LEAN,
    EXACT,
    MethodSpec("lean1", "lean INT1", "lean", 1, rows_per_block=8),
    MethodSpec("lean4", "lean INT4", "lean", 4, rows_per_block=8),
    MethodSpec("block64", "G/R = 64", "exact", 2, 8, 64),
    MethodSpec("pyg-eager", "PyG eager", "pyg"),
)
MODELS = (
    ModelSpec("sage-3x128", "sage", 3, 128, 0.5, True),
    ModelSpec("sage-3x256", "sage", 3, 256, 0.5, True),
)
# As the published experiment on ogbn-products, which has no BatchNorm.
LARGE_MODEL = ModelSpec("sage-3x256-nobn", "sage", 3, 256, 0.5, False)
LARGE_METHODS = (LEAN, EXACT, FP32)
TRAINING = TrainingSpec(1, 0.01, 0.0, 0.5, "log_cross_entropy")
MIB = 2.0**20


def time_training(
    rows: Rows,
    name: str,
    device: torch.device,
    deadline: Deadline,
    *,
    graph_name: str,
    sizes: GraphSizes,
    compile: str = "auto",
    methods: Sequence[MethodSpec] = METHODS,
    models: Sequence[ModelSpec] = MODELS,
    repeats: int = 15,
) -> list[str]:
    """Time methods in turns, model by model; returns what the deadline left out."""
    graph = drawn_graph(graph_name, sizes, device)
    left = []
    for model in models:
        trainers: dict[str, Trainer] = {}
        found: dict[str, dict[str, Any]] = {}
        for method in methods:
            # Half of what is left is for the rounds.
            if deadline.left() < 0 or (
                found and deadline.left() < deadline.seconds / 8
            ):
                left.append(f"{model.name} {method.name}")
                continue
            spec = RunSpec(graph_name, model, method, TRAINING, (0,), "auto", compile)
            begin = partial(_begin, spec, graph, trainers)
            found[method.name] = _attempt(begin, rows.path.parent, spec)
        samples, number = _take_turns(trainers, device, deadline, repeats)
        fp32 = samples.get(FP32.name)
        for method_name, row in found.items():
            rows.add(
                {
                    **_labels(name, graph, model, method_name),
                    **row,
                    **_times(samples.get(method_name), fp32, number.get(method_name)),
                }
            )
        trainers.clear()
        _free(device)
    return left


def fit_large_graph(
    rows: Rows,
    name: str,
    device: torch.device,
    deadline: Deadline,
    *,
    graph_name: str,
    sizes: GraphSizes,
    compile: str = "auto",
    repeats: int = 3,
) -> list[str]:
    """Try each method alone on a graph that may not fit; returns what was left out."""
    folder, model = rows.path.parent, LARGE_MODEL
    drawn: dict[str, Graph] = {}

    def draw() -> dict[str, Any]:
        drawn["graph"] = drawn_graph(graph_name, sizes, device)
        return {}

    whole = RunSpec(graph_name, model, FP32, TRAINING, (0,), "auto", compile)
    state = _attempt(draw, folder, whole)
    if "graph" not in drawn:
        rows.add({"device": name, "graph": graph_name, "state": state["state"]})
        return []
    _free(device)  # what drawing took
    methods = list(LARGE_METHODS)
    while methods and deadline.left() > 0:
        method = methods.pop(0)
        spec = RunSpec(graph_name, model, method, TRAINING, (0,), "auto", compile)
        trainers: dict[str, Trainer] = {}
        begin = partial(_begin, spec, drawn["graph"], trainers)
        row = _attempt(begin, folder, spec)
        samples, number = _take_turns(trainers, device, deadline, repeats)
        times = _times(samples.get(method.name), None, number.get(method.name))
        rows.add({**_labels(name, drawn["graph"], model, method.name), **row, **times})
        trainers.clear()
        _free(device)
    return [method.name for method in methods]


def _begin(spec: RunSpec, graph: Graph, trainers: dict[str, Trainer]) -> dict[str, Any]:
    """Build a trainer, let it take its first steps, and read their bytes."""
    trainer = Trainer(spec, graph, None, seed=0)
    first = measure_time(lambda: trainer.step(0), trainer.device)
    memory = measure_step_memory(trainer)
    row: dict[str, Any] = {
        "first_step_s": first,
        "saved_mib": memory["saved_memory"] / MIB,
        "peak_mib": memory["peak_memory"] / MIB,
        "resident_mib": memory["resident_memory"] / MIB,
    }
    if spec.method.policy in BOOKED_POLICIES:
        loss = spec.training.loss
        booked = saved_bytes(spec.model, spec.method, graph.sizes, loss)
        row["booked_saved_mib"] = booked / MIB
    if trainer.device.type == "cuda":
        row["launches"] = count_launches(lambda: trainer.step(0))
    trainers[spec.method.name] = trainer
    return row


def count_launches(call: Callable[[], object]) -> int:
    """Kernels, copies and fills that a call starts on the GPU."""
    activities = [
        torch.profiler.ProfilerActivity.CPU,
        torch.profiler.ProfilerActivity.CUDA,
    ]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    events = profile.events() or []
    return sum(event.device_type == DeviceType.CUDA for event in events)


def _take_turns(
    trainers: dict[str, Trainer], device: torch.device, deadline: Deadline, repeats: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of a step, and how many steps each sample is the mean of."""
    number = {}
    for name, trainer in trainers.items():
        seconds = measure_time(partial(trainer.step, 0), device)
        number[name] = calls_to_time(seconds, device)
    samples: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(repeats):
        for name, trainer in trainers.items():
            step = partial(trainer.step, 0)
            samples[name].append(measure_time(step, device, number[name]))
        if deadline.left() < 0:
            break
    return samples, number


def _attempt(
    call: Callable[[], dict[str, Any]], folder: Path, spec: RunSpec
) -> dict[str, Any]:
    """What a call finds, and its state: one that fails must not take others along."""
    label = f"{spec.graph} {spec.model.name} {spec.method.name}"
    try:
        return {"state": "measured", **call()}
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason, state = str(error), "does not fit"
    except Exception as error:
        reason, state = f"{type(error).__name__}: {error}", "failed"
    note(folder, label, f"{state}: {reason.partition(chr(10))[0]}")
    _free(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return {"state": state}


def _labels(name: str, graph: Graph, model: ModelSpec, method: str) -> dict[str, Any]:
    return {
        "device": name,
        "graph": graph.name,
        "nodes": graph.num_nodes,
        "entries": graph.adjacency.num_entries,
        "model": model.name,
        "method": method,
    }


def _times(
    samples: list[float] | None, fp32: list[float] | None, number: int | None
) -> dict[str, Any]:
    if not samples:
        return {}
    low, median, high = quartiles(samples)
    row = {
        "samples": len(samples),
        "steps_per_sample": number,
        "step_ms_q1": 1e3 * low,
        "step_ms": 1e3 * median,
        "step_ms_q3": 1e3 * high,
    }
    if fp32:
        row["step_over_fp32"] = median / quartiles(fp32)[1]
    return row


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
