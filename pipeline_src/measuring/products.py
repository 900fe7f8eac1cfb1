"""Full-batch training at ogbn-products' shape under a limit of resident memory.

    python -m pipeline_src.measuring.products FOLDER TABLE --limit-gib 12

draws a graph of that shape into FOLDER, once, and gives each method a process of its
own that is killed when its resident memory passes the limit. A row is written as soon
as it is known and never measured again. The graph is synthetic: bytes and seconds
depend on counts and degrees, not on what features say; accuracies would mean nothing.
"""

import argparse
import csv
import io
import json
import multiprocessing
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from pipeline_src.graphs.sizes import PRODUCTS, GraphSizes
from pipeline_src.measuring.large_graph import (
    draw_graph,
    read_mapped,
    scaled_products,
)
from pipeline_src.records.whole_files import write_whole
from pipeline_src.training.meters import measure_memory, measure_time, resident_bytes
from pipeline_src.training.spec import MethodSpec, ModelSpec, RunSpec, TrainingSpec
from pipeline_src.training.step_memory import measure_saved_memory
from pipeline_src.training.trainer import Trainer

GIB = 2**30
MODEL = ModelSpec("sage-3x256", "sage", 3, 256, 0.5, True)
TRAINING = TrainingSpec(1, 0.01, 0.0, None, "cross_entropy")
METHODS = (
    MethodSpec("lean-int2", "lean INT2", "lean", 2, rows_per_block=8),
    MethodSpec("exact-int2", "EXACT INT2", "exact", 2, projection_ratio=8),
    MethodSpec("fp32", "FP32", "full"),
    MethodSpec("pyg-eager", "PyG eager", "pyg"),
    MethodSpec("pyg-bf16", "PyG bfloat16", "pyg", technique="autocast"),
    MethodSpec(
        "pyg-checkpointing", "PyG checkpointing", "pyg", technique="checkpointing"
    ),
)
COLUMNS = (
    *("method", "nodes", "entries", "limit [GiB]", "fits", "saved [GiB]"),
    *("step peak [GiB]", "data [GiB]", "max resident [GiB]", "step [s]"),
    *("threads", "torch", "processor"),
)
KEY = ("method", "nodes", "limit [GiB]")
COMPILING_COUNTS = 400_000  # nodes; from here on the first step is timed
WATCH_SECONDS = 0.05  # between two looks at a process


def measure(folder: Path, num_classes: int, method: MethodSpec) -> dict[str, float]:
    """Saved bytes, peak and seconds of a method's training step, in this process.

    The peak is that of the first step. So are the seconds on a large graph, where
    compiling is a small part of them; on a smaller one they are those of a second.
    """
    graph = read_mapped(folder, num_classes)
    spec = RunSpec(graph.name, MODEL, method, TRAINING, (0,), "cpu")
    trainer = Trainer(spec, graph, None, seed=0)
    adjacency = (graph.adjacency.row_pointer, graph.adjacency.column)
    data = [graph.features, graph.labels, *graph.splits.values(), *adjacency]
    first, step = measure_memory(lambda: _seconds_of_step(trainer), trainer.device)
    print(f"{method.label}: first step {first:.1f} s", flush=True)
    seconds = first
    if graph.num_nodes < COMPILING_COUNTS:
        seconds = _seconds_of_step(trainer)
    trainer.optimizer.zero_grad()
    saved, _ = measure_saved_memory(trainer)
    return {
        "saved [GiB]": saved / GIB,
        "step peak [GiB]": step.peak / GIB,
        "data [GiB]": resident_bytes([*data, *trainer.aggregation.tensors()]) / GIB,
        "max resident [GiB]": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        / GIB,
        "step [s]": seconds,
    }


def measure_under(
    limit: float, folder: Path, num_classes: int, method: MethodSpec
) -> dict[str, Any]:
    """The same in a process of its own, killed when it holds more than limit bytes.

    Raises:
        RuntimeError: if the process ended otherwise than by the limit, for want of
            memory, or with a result.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "result.json"
        child = multiprocessing.get_context("spawn").Process(
            target=_measure_into, args=(path, folder, num_classes, method)
        )
        child.start()
        most, was_killed = _watch(child, limit)
        child.join()
        if was_killed:
            return {"fits": "does not fit", "max resident [GiB]": most / GIB}
        if child.exitcode or not path.exists():
            raise RuntimeError(
                f"{method.label}: the process ended with code {child.exitcode} below "
                f"its limit, at {most / GIB:.2f} GiB; its messages are above. -9 is "
                "the system's own want of memory: give a smaller --limit-gib"
            )
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found.pop("out of memory", False):
        return {"fits": "does not fit", "max resident [GiB]": most / GIB}
    return {"fits": "yes", **found}


def add_rows(
    table: Path,
    folder: Path,
    methods: Sequence[MethodSpec],
    sizes: GraphSizes,
    limit_gib: float,
) -> None:
    """Measure what the table does not have, and write each row as it is found."""
    known = {tuple(row[name] for name in KEY) for row in _read(table)}
    for method in methods:
        row = dict.fromkeys(COLUMNS, "")
        row.update(zip(KEY, _key(method, sizes, limit_gib), strict=True))
        if _key(method, sizes, limit_gib) in known:
            continue
        here = folder / f"nodes-{sizes.num_nodes}"
        draw_graph(here, sizes)
        entries = np.load(here / "column.npy", mmap_mode="r", allow_pickle=False).size
        found = measure_under(limit_gib * GIB, here, sizes.num_classes, method)
        row.update(
            {
                "entries": str(entries),
                "threads": str(torch.get_num_threads()),
                "torch": torch.__version__,
                "processor": _processor(),
                **{name: _printed(value) for name, value in found.items()},
            }
        )
        # Read again: another graph's rows may have been added meanwhile.
        _write(table, [*_read(table), row])
        print(row, flush=True)


def main() -> None:
    """Measure what the table does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for graphs, 1.5 GiB at full size")
    parser.add_argument("table", type=Path)
    parser.add_argument("--limit-gib", type=float, required=True)
    parser.add_argument("--nodes", type=int, default=PRODUCTS.num_nodes)
    names = [method.name for method in METHODS]
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    given = parser.parse_args()
    chosen = [method for method in METHODS if method.name in given.methods]
    sizes = scaled_products(given.nodes)
    add_rows(given.table, given.folder, chosen, sizes, given.limit_gib)


def _seconds_of_step(trainer: Trainer) -> float:
    return measure_time(lambda: trainer.step(0), trainer.device)


def _measure_into(
    path: Path, folder: Path, num_classes: int, method: MethodSpec
) -> None:
    """What the process of a method does."""
    try:
        found = measure(folder, num_classes, method)
    except MemoryError:
        found = {"out of memory": True}
    except RuntimeError as error:
        # How torch's allocator for a CPU says MemoryError.
        if "can't allocate memory" not in str(error):
            raise
        found = {"out of memory": True}
    path.write_text(json.dumps(found), encoding="utf-8")


def _watch(child: BaseProcess, limit: float) -> tuple[int, bool]:
    """The most bytes a process was seen to hold, and whether that was too much."""
    most = 0
    try:
        process = psutil.Process(child.pid)
        while child.is_alive():
            most = max(most, process.memory_info().rss)
            if most > limit:
                child.kill()
                return most, True
            time.sleep(WATCH_SECONDS)
    except psutil.NoSuchProcess:  # it ended between two lines
        pass
    return most, False


def _key(
    method: MethodSpec, sizes: GraphSizes, limit_gib: float
) -> tuple[str, str, str]:
    return method.label, str(sizes.num_nodes), f"{limit_gib:g}"


def _printed(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3f}"


def _processor() -> str:
    """The processor's name, of Linux's own list where there is one."""
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(table: Path) -> list[dict[str, str]]:
    if not table.exists():
        return []
    with table.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _write(table: Path, rows: Sequence[Mapping[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(table, text.getvalue())


if __name__ == "__main__":
    main()
