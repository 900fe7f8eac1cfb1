"""Chosen settings of activation compression on seeds that chose nothing.

Test accuracy appears here for the first time, once per method and seed, beside full
precision's from the same seed, and with the three numbers of memory: saved, step peak,
resident.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import xarray as xr

from pipeline_src.records import datasets
from pipeline_src.settings.plans import FULL, ActivationSearch
from pipeline_src.settings.space import describe_method
from pipeline_src.training.job import Job
from pipeline_src.training.runs import train_run
from pipeline_src.training.spec import MethodSpec, RunSpec

ABS = "ABS"  # automatic bit selection: what the surrogate found
CHOSEN_BY = "surrogate"
MEASURED = (
    "test_accuracy",
    "validation_accuracy",
    "saved_memory",
    "peak_memory",
    "resident_memory",
)


def measure_settings(
    block: RunSpec,  # of fresh seeds; its method does not matter
    beside: Sequence[MethodSpec],  # that nobody chose, such as uniform settings
    selection: xr.Dataset,  # of choice.choose_settings
    job: Job,  # its parts are seeds, in a folder for each method
) -> xr.Dataset:
    """Train full precision, what was chosen, and the methods beside.

    Returns:
        Variables of MEASURED, dims (method, seed); coordinates spec and setting: the
        MethodSpec, as JSON and in words.

    Raises:
        ValueError: if a seed helped to choose.
    """
    search = ActivationSearch.from_params(
        selection.attrs["search"], device=block.device, compile=block.compile
    )
    if again := set(block.seeds) & set(search.run.seeds):
        raise ValueError(f"seeds must be fresh, but settings were chosen on {again}")
    methods = {FULL.label: FULL, **_chosen(search, selection)}
    methods |= {method.label: method for method in beside}
    trained: dict[MethodSpec, xr.Dataset] = {}
    parts = []
    for method in methods.values():
        unnamed = replace(method, name="measured", label="")
        if unnamed not in trained:  # two questions may have one answer
            trained[unnamed] = train_run(
                replace(block, method=method), _with_parts_of(job, unnamed)
            )
        parts.append(trained[unnamed][list(MEASURED)])
    record = xr.concat(parts, "method", combine_attrs="override").assign_coords(
        method=datasets.text_coord("method", list(methods), "method"),
        spec=datasets.text_coord(
            "method",
            [_text(method) for method in methods.values()],
            "MethodSpec as JSON",
        ),
        setting=datasets.text_coord(
            "method",
            [describe_method(method) for method in methods.values()],
            "what the method keeps",
        ),
    )
    provenance = next(iter(trained.values())).attrs["provenance"]
    record.attrs = {"run": block.to_params(), "provenance": provenance}
    return record


def _chosen(search: ActivationSearch, selection: xr.Dataset) -> dict[str, MethodSpec]:
    """What the surrogate answered to each question."""
    rows = zip(
        selection["answer_aim"].values.tolist(),
        selection["answer_strategy"].values.tolist(),
        selection["answer_method"].values.tolist(),
        strict=True,
    )
    return {
        f"{ABS} within {search.limits[aim]}": MethodSpec.from_json(json.loads(text))
        for aim, strategy, text in rows
        if strategy == CHOSEN_BY
    }


def _with_parts_of(job: Job, method: MethodSpec) -> Job:
    if job.partial_dir is None:
        return job
    name = hashlib.sha256(_text(method).encode()).hexdigest()[:16]
    return replace(job, partial_dir=job.partial_dir / name)


def _text(method: MethodSpec) -> str:
    return json.dumps(asdict(method), sort_keys=True)
