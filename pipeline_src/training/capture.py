"""Activations seen while a network trains on them compressed.

An ObservedCompressor stands in for each Compressor of the method and looks at what it
is given, so what is observed is exactly what is kept, whatever the model. Where the
method projects, each tensor is looked at twice, as it is and projected, whichever of
the two is kept.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pipeline_src.gnn.models import Keep
from pipeline_src.quant.compressor import CompressedActivation, Compressor
from pipeline_src.quant.projection import count_projected, project
from pipeline_src.training.job import Job
from pipeline_src.training.observations import Observation, observe_blocks
from pipeline_src.training.spec import RunSpec
from pipeline_src.training.trainer import Trainer

SAMPLED_VALUES = 2**16  # of each tensor, in whole blocks
FRACTIONS = {
    "at_minimum": "share of values equal to the minimum of their block",
    "at_maximum": "share of values equal to the maximum of their block",
    "zero_fraction": "share of values that are exactly zero",
    "num_values": "values in the tensor",
}

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class ObservedCompressor(Compressor):
    """A Compressor that shows each activation to a function before it compresses it."""

    observe: Callable[[Tensor, Tensor], None] = lambda x, seed: None

    def compress(self, x: Tensor, seed: Tensor) -> CompressedActivation:
        """Show x and seed, then compress as the plain recipe does."""
        self.observe(x, seed)
        return super().compress(x, seed)


def capture_activations(
    spec: RunSpec,
    job: Job,
    epochs: Sequence[int],  # 1 is the first
) -> xr.Dataset:
    """Train the first seed of a cell and record the positions of what it keeps.

    Raises:
        ValueError: if the method keeps full precision, or an epoch is not trained.
    """
    if spec.method.policy != "exact":
        raise ValueError(
            f"method {spec.method.name} compresses no activation by itself, so there "
            "is nothing to capture; name a method with policy exact"
        )
    if bad := [epoch for epoch in epochs if not 1 <= epoch <= spec.training.epochs]:
        raise ValueError(
            f"epochs to capture must lie in 1..{spec.training.epochs}, got {bad}"
        )
    job = job.on(spec.device)
    seen: dict[tuple[str, int, int], Observation] = {}
    now = 0
    variants = (0, 1) if spec.method.projection_ratio > 1 else (0,)

    def observer(name: str) -> Callable[[Tensor, Tensor], None]:
        def observe(x: Tensor, seed: Tensor) -> None:
            # What is not finite has no positions; check_finite names it in the end.
            if now in epochs and bool(torch.isfinite(x).all()):
                for projected in variants:
                    seen[name, now, projected] = _observe(x, seed, spec, projected)

        return observe

    def watch(keep: Keep) -> Keep:
        def observed_keep(name: str, width: int, may_project: bool) -> Compressor:
            recipe = keep(name, width, may_project)
            fields = dataclasses.fields(recipe)
            values = {field.name: getattr(recipe, field.name) for field in fields}
            return ObservedCompressor(**values, observe=observer(name))

        return observed_keep

    trainer = Trainer(spec, job.graph, job.boundaries_of, spec.seeds[0], watch)
    for epoch in range(max(epochs)):
        now = epoch + 1
        loss = trainer.step(epoch)
        if now in epochs:
            log.info("%s: captured epoch %d, loss %.4f", spec.cell, now, float(loss))
    trainer.model.check_finite()
    dataset = _as_dataset(seen, trainer.model.activation_names, sorted(epochs))
    dataset.attrs = {
        "spec": json.dumps(spec.to_json(), sort_keys=True),
        "bits": spec.method.bits,
        "provenance": job.provenance_text(),
    }
    return dataset


def _observe(x: Tensor, seed: Tensor, spec: RunSpec, projected: int) -> Observation:
    width = x.shape[1]
    if projected:
        width = count_projected(width, spec.method.projection_ratio)
        x = project(x, seed, width)
    size = spec.method.block_size(width)
    generator = torch.Generator().manual_seed(spec.seeds[0])
    return observe_blocks(
        x,
        size,
        spec.method.bits,
        sample_blocks=max(1, SAMPLED_VALUES // size),
        generator=generator,
    )


def _as_dataset(
    seen: dict[tuple[str, int, int], Observation],
    names: Sequence[str],
    epochs: Sequence[int],
) -> xr.Dataset:
    shape = (len(names), len(epochs), 2)
    num_samples = max(observation.position.size for observation in seen.values())
    position = np.full((*shape, num_samples), np.nan, np.float32)
    sizes = np.full((shape[0], 2), np.nan)
    fractions = {name: np.full(shape, np.nan) for name in FRACTIONS}
    for (name, epoch, projected), observation in seen.items():
        at = (names.index(name), epochs.index(epoch), projected)
        position[at][: observation.position.size] = observation.position
        sizes[at[0], projected] = observation.block_size
        for field, values in fractions.items():
            values[at] = getattr(observation, field)
    dims = ("tensor", "epoch", "projected")
    described = {"units": "bin", "long_name": "position within the block"}
    size_text = {"units": "1", "long_name": "values per block"}
    variables = {
        "position": ((*dims, "sample"), position, described),
        "block_size": (("tensor", "projected"), sizes, size_text),
    }
    for field, long_name in FRACTIONS.items():
        attrs = {"units": "1", "long_name": long_name}
        variables[field] = (dims, fractions[field], attrs)
    coords = {
        "tensor": ("tensor", list(names), {"units": "1", "long_name": "activation"}),
        "epoch": ("epoch", list(epochs), {"units": "1", "long_name": "epoch"}),
        "projected": (
            "projected",
            [0, 1],
            {"units": "1", "long_name": "whether randomly projected"},
        ),
    }
    return xr.Dataset(variables, coords)
