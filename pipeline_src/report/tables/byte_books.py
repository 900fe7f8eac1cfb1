"""What methods would keep on graphs of known size, counted and not measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pipeline_src.graphs.sizes import GRAPH_SIZES
from pipeline_src.measuring.byte_books import saved_bytes, saved_bytes_with_loss
from pipeline_src.report.tables.table import (
    NUMBER_MISSING,
    Table,
    mebibytes,
    text_column,
)
from pipeline_src.training.spec import MethodSpec, RunSpec

MIB = 2**20  # bytes
FP32 = MethodSpec("fp32", "FP32", "full")
_COLUMNS = ["graph", "model", "method", "num_nodes", "saved_mib"]
_COLUMNS += ["saved_with_loss_mib", "compression_ratio"]


def byte_books_table(
    specs: Sequence[RunSpec], labels: Mapping[str, str] | None = None
) -> Table:
    """One row per specification, in their order; labels of methods by their names."""
    values = pd.DataFrame(
        [_row(spec, labels or {}) for spec in specs], columns=_COLUMNS
    )
    shown = values[["graph", "model", "method"]].copy()
    shown["nodes"] = text_column(values["num_nodes"], "{:,.0f}")
    shown["saved [MiB]"] = values["saved_mib"].map(mebibytes)
    shown["FP32 / saved"] = text_column(values["compression_ratio"], "{:.2f}")
    shown["saved with loss side [MiB]"] = values["saved_with_loss_mib"].map(mebibytes)
    return Table(
        "Byte books",
        "Bytes that each method keeps for backward, counted from shapes alone: the"
        " same books agree with the allocator to the byte where both are to be had."
        " Saved: by the published definition. FP32 / saved: above 1 keeps less.",
        values,
        shown,
        NUMBER_MISSING,
    )


def _row(spec: RunSpec, labels: Mapping[str, str]) -> tuple[Any, ...]:
    sizes = GRAPH_SIZES[spec.graph]
    loss = spec.training.loss
    saved = saved_bytes(spec.model, spec.method, sizes, loss)
    return (
        spec.graph,
        spec.model.name,
        labels.get(spec.method.name, spec.method.label),
        sizes.num_nodes,
        saved / MIB,
        saved_bytes_with_loss(spec.model, spec.method, sizes, loss) / MIB,
        saved_bytes(spec.model, FP32, sizes, loss) / saved,
    )
