"""What methods would keep on graphs of known size, counted and not measured.

The same books agree with the allocator to the byte where both are to be had
(tests/measuring/test_bytes.py), so these rows stand beside measured ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline_src.graphs.sizes import GRAPH_SIZES
from pipeline_src.measuring.byte_books import saved_bytes, saved_bytes_with_loss
from pipeline_src.training.spec import RunSpec

SETTINGS = ("policy", "bits", "projection_ratio", "rows_per_block", "boundaries")


def counted_rows(
    specs: Sequence[RunSpec], labels: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row per specification, in their order; labels of methods by their names."""
    return [_counted_row(spec, labels) for spec in specs]


def _counted_row(spec: RunSpec, labels: Mapping[str, str]) -> dict[str, Any]:
    """Settings of a specification and the bytes [byte] that follow from its shapes."""
    sizes, method = GRAPH_SIZES[spec.graph], spec.method
    loss = spec.training.loss
    return {
        "graph": spec.graph,
        "model": spec.model.name,
        "method": method.name,
        "label": labels.get(method.name, method.label),
        **{name: getattr(method, name) for name in SETTINGS},
        "saved_memory": saved_bytes(spec.model, method, sizes, loss),
        "saved_memory_with_loss": saved_bytes_with_loss(
            spec.model, method, sizes, loss
        ),
    }
