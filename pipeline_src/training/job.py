"""What one job works with, the same for all that it trains and measures.

A specification says what is computed and belongs to the record. A job brings the rest:
the data, the table of boundaries, the device, and where it keeps what is finished.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pipeline_src.graphs.graph import Graph
from pipeline_src.records import datasets
from pipeline_src.records.devices import describe_device, resolve_device
from pipeline_src.training.spec import BoundariesOf


@dataclass(frozen=True, eq=False)
class Job:
    """Graph, boundaries, device and threads of one job.

    Args:
        graph: on any device; what is trained on it goes to the device of its
            specification, see `on`.
        boundaries_of: solved boundaries, of `read_boundaries`; needed by methods that
            do not round evenly.
        source_digest: goes into records as provenance.
        threads: of torch; go into records as provenance.
        partial_dir: where each finished part of a record is kept until all are, so that
            a later call makes only those that are missing. Its name must change with
            everything that changes a record.
    """

    graph: Graph
    boundaries_of: BoundariesOf | None = None
    source_digest: str = "not recorded"
    threads: int = field(default_factory=torch.get_num_threads)
    partial_dir: Path | None = None

    def on(self, device: str) -> "Job":
        """The same job with its graph on a device: "auto", "cpu" or "cuda".

        Raises:
            ValueError: if device is none of these, or "cuda" and there is none.
        """
        return replace(self, graph=self.graph.to(resolve_device(device)))

    @property
    def device(self) -> torch.device:
        """Where the graph lies."""
        return self.graph.features.device

    def part(self, name: str) -> Path | None:
        """The file of a finished part; None if parts are not kept."""
        return self.partial_dir / f"{name}.nc" if self.partial_dir else None

    def provenance(self) -> dict[str, Any]:
        """With what the job makes its records."""
        return datasets.describe_provenance(
            self.source_digest, describe_device(self.device), self.threads
        )

    def provenance_text(self) -> str:
        """The same as JSON, for an attribute."""
        return json.dumps(self.provenance(), sort_keys=True)
