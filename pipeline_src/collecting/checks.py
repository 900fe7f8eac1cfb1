"""Checks: results that cannot be right, whatever the methods are worth.

check_results takes the collected dataset and returns every problem as one sentence with
names and values. Each bound is derived, none is tuned:

* *Chance.* A classifier that has learnt nothing from the features is right at best with
  the share p of the most frequent class. Over n test nodes the number right is then
  binomial(n, p); an accuracy below the value that this exceeds once in a million is
  indistinguishable from having learnt nothing.
* *Block size.* Larger blocks share zero point and scale, so memory must not rise with
  rows per block; but a padded last block costs up to one block of codes per tensor, and
  an allocation is rounded up to 512 bytes. Where that slack is below one percent of the
  memory, and the cap on the block size leaves room, memory must really fall.
* *Compression.* No compressed method keeps more than FP32 does. Rivals and variants
  that are measured to see what they cost may keep whatever they keep.
* *Due.* Accuracy, time, saved memory and every epoch of every curve have finite values,
  and every seed asked for has a run.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from pipeline_src.collecting.mixed_versions import describe_versions

ALLOCATION = 512  # bytes; what an allocation is rounded up to (CUDA's allocator)
TENSORS_PER_LAYER = 3  # compressed at most: input, aggregated input, batch-norm input
BOUND = ("full", "exact", "lean")  # policies whose memory is bounded by these checks
CHANCE_PROBABILITY = 1e-6
NEGLIGIBLE = 0.01  # slack as a fraction of the memory
ALWAYS_DUE = (
    "test_accuracy",
    "validation_accuracy",
    "best_epoch",
    "chance_accuracy",
    "num_test_nodes",
    "epoch_time",
    "saved_memory",
)
CURVES_DUE = (
    "loss_curve",
    "train_accuracy_curve",
    "validation_accuracy_curve",
    "test_accuracy_curve",
)


def check_results(runs: xr.Dataset) -> list[str]:
    """Return every impossible result as one sentence each; sound ones give []."""
    trained = _trained(runs)
    measured = _measured(runs)
    return [
        *_missing_values(runs, trained),
        *_missing_measurements(measured),
        *_missing_seeds(trained),
        *_at_chance(trained),
        *_memory_problems(trained, "in training"),
        *_memory_problems(measured, "measured alone"),
    ]


def describe_checks(runs: xr.Dataset) -> str:
    """Say what check_results looks at in this dataset, one line per check."""
    num_runs, num_measured = runs.sizes["run"], runs.sizes["measurement"]
    return "\n".join(
        [
            f"{num_runs} runs: a finite value wherever one is due"
            f" ({', '.join(ALWAYS_DUE)}; every epoch of {', '.join(CURVES_DUE)})",
            f"{num_measured} measurements: saved memory has a value; epochs were timed"
            " in every repeat or in none",
            f"{num_runs} runs: every seed that was asked for has one run",
            f"{num_runs} runs: test accuracy above chance (binomial bound at"
            f" {CHANCE_PROBABILITY:g})",
            f"{num_runs} runs and {num_measured} measurements: saved memory does not"
            " rise with rows per block, and falls where it must",
            f"{num_runs} runs and {num_measured} measurements: no compressed method"
            " keeps more than FP32",
            describe_versions(provenances(runs)),
            *(f"WARNING: {doubt}" for doubt in doubts(runs)),
        ]
    )


def provenances(runs: xr.Dataset) -> list[str]:
    """What made each run and each measurement, as JSON."""
    names = ("provenance", "measurement_provenance")
    return [str(text) for name in names for text in runs[name].values]


def doubts(runs: xr.Dataset) -> list[str]:
    """What the records say makes their accuracies mean less than they seem."""
    said = [json.loads(text).get("doubts", []) for text in provenances(runs)]
    return list(dict.fromkeys(itertools.chain.from_iterable(said)))


def chance_bound(chance_accuracy: float, num_test_nodes: int) -> float:
    """Return the accuracy that guessing exceeds with probability 1e-6 at most.

    >>> round(chance_bound(0.1, 1000), 3)
    0.148
    """
    right = stats.binom.isf(CHANCE_PROBABILITY, num_test_nodes, chance_accuracy)
    return float(right) / num_test_nodes


def block_size_slack(spec: dict[str, Any]) -> float:
    """Return by how many bytes padding can raise memory when blocks grow."""
    tensors = TENSORS_PER_LAYER * spec["model"]["num_layers"]
    padding = spec["method"]["max_block_size"] * spec["method"]["bits"] / 8
    return float(tensors * (padding + ALLOCATION))


def _trained(runs: xr.Dataset) -> pd.DataFrame:
    names = [name for name in runs.variables if runs[name].dims == ("run",)]
    return runs[names].to_dataframe().reset_index()


def _measured(runs: xr.Dataset) -> pd.DataFrame:
    names = [name for name in runs.variables if runs[name].dims == ("measurement",)]
    frame = runs[names].to_dataframe().reset_index()
    times = runs["measured_epoch_time"].values
    frame = frame.rename(
        columns=lambda name: name.removeprefix("measurement_").removeprefix("measured_")
    )
    frame["num_timed"] = np.isfinite(times).sum(axis=1)
    # Fewer repeats than another graph or model are padded, not missing.
    place = frame.groupby(["graph", "model"])["num_timed"]
    frame["num_repeats"] = place.transform("max")
    return frame


def _place(row: pd.Series) -> str:
    seed = f" seed {row['seed']}" if "seed" in row.index else ""
    return f"{row['graph']} {row['model']} {row['method']}{seed}"


def _missing_values(runs: xr.Dataset, trained: pd.DataFrame) -> Iterator[str]:
    for index, (_, row) in enumerate(trained.iterrows()):
        for name in ALWAYS_DUE:
            if not np.isfinite(row[name]):
                yield f"{_place(row)}: {name} is {row[name]}, a finite value is due."
        num_epochs = json.loads(row["spec"])["training"]["epochs"]
        for name in CURVES_DUE:
            curve = runs[name].values[index][:num_epochs]
            bad = num_epochs - int(np.isfinite(curve).sum())
            if bad:
                yield (
                    f"{_place(row)}: {name} lacks a finite value in {bad} of"
                    f" {num_epochs} epochs."
                )


def _missing_measurements(measured: pd.DataFrame) -> Iterator[str]:
    for _, row in measured.iterrows():
        if not np.isfinite(row["saved_memory"]):
            yield (
                f"{_place(row)} measured alone: saved_memory is"
                f" {row['saved_memory']}, a finite value is due."
            )
        if row["num_timed"] not in (0, row["num_repeats"]):
            yield (
                f"{_place(row)} measured alone: {row['num_timed']} of"
                f" {row['num_repeats']} repeats have an epoch time; all or none must."
            )


def _missing_seeds(trained: pd.DataFrame) -> Iterator[str]:
    for (graph, model, method), group in trained.groupby(
        ["graph", "model", "method"], sort=False
    ):
        specs = [json.loads(spec) for spec in group["spec"].unique()]
        asked = {seed for spec in specs for seed in spec["seeds"]}
        missing = sorted(asked - set(group["seed"]))
        if missing:
            yield (
                f"{graph} {model} {method}: {len(missing)} of {len(asked)} seeds have"
                f" no run: {missing}."
            )
        repeated = sorted(set(group["seed"][group["seed"].duplicated()]))
        if repeated:
            yield f"{graph} {model} {method}: seeds {repeated} have several runs."


def _at_chance(trained: pd.DataFrame) -> Iterator[str]:
    for _, row in trained.iterrows():
        known = np.isfinite(row["chance_accuracy"]) and row["num_test_nodes"] > 0
        if not known or np.isnan(row["test_accuracy"]):
            continue  # reported as missing
        if row["chance_accuracy"] == 1:
            continue  # one class only: nobody can do better, and `doubts` tells it
        bound = chance_bound(row["chance_accuracy"], int(row["num_test_nodes"]))
        if not row["test_accuracy"] > bound:
            yield (
                f"{_place(row)}: test accuracy {row['test_accuracy']:.4f} is at chance;"
                f" guessing the most frequent class ({row['chance_accuracy']:.4f} of"
                f" {row['num_test_nodes']:.0f} test nodes) reaches {bound:.4f}."
            )
        if row["test_accuracy"] > 1:
            yield f"{_place(row)}: test accuracy {row['test_accuracy']} is above 1."


def _memory_problems(frame: pd.DataFrame, where: str) -> Iterator[str]:
    """Compare the methods of each graph and model, their mean over seeds for runs."""
    settings = ["policy", "bits", "projection_ratio", "rows_per_block", "boundaries"]
    settings += ["layer_bits"]
    frame = frame[frame["policy"].isin(BOUND) & (frame["without"] == "")]
    for (graph, model), place in frame.groupby(["graph", "model"], sort=False):
        how = dict.fromkeys([*settings, "spec"], "first") | {"saved_memory": "mean"}
        methods = place.groupby("method", sort=False).agg(how)
        name = f"{graph} {model} {where}"
        yield from _above_fp32(name, methods)
        family = ["policy", "bits", "layer_bits", "projection_ratio", "boundaries"]
        compressed = methods[methods["policy"] != "full"]
        for _, same in compressed.groupby(family, sort=False):
            yield from _not_falling(name, same.sort_values("rows_per_block"))


def _above_fp32(name: str, methods: pd.DataFrame) -> Iterator[str]:
    fp32 = methods.loc[methods["policy"] == "full", "saved_memory"]
    if fp32.empty:
        return
    for method, row in methods[methods["policy"] != "full"].iterrows():
        if row["saved_memory"] >= fp32.iloc[0]:
            yield (
                f"{name}: {method} keeps {row['saved_memory']:.0f} bytes, not less than"
                f" the {fp32.iloc[0]:.0f} bytes of FP32 ({fp32.index[0]})."
            )


def _not_falling(name: str, methods: pd.DataFrame) -> Iterator[str]:
    rows = list(methods.iterrows())
    for (small, before), (large, after) in itertools.pairwise(rows):
        slack = block_size_slack(json.loads(after["spec"]))
        if after["saved_memory"] > before["saved_memory"] + slack:
            yield (
                f"{name}: memory rises with the block size, from"
                f" {before['saved_memory']:.0f} bytes ({small},"
                f" {before['rows_per_block']} rows per block) to"
                f" {after['saved_memory']:.0f} bytes ({large},"
                f" {after['rows_per_block']} rows per block)."
            )
    (small, before), (large, after) = rows[0], rows[-1]
    if not _must_fall(before, after):
        return
    if after["saved_memory"] >= before["saved_memory"]:
        yield (
            f"{name}: memory does not fall from {small} ({before['rows_per_block']}"
            f" rows per block, {before['saved_memory']:.0f} bytes) to {large}"
            f" ({after['rows_per_block']} rows per block,"
            f" {after['saved_memory']:.0f} bytes)."
        )


def _must_fall(before: pd.Series, after: pd.Series) -> bool:
    """Tell whether blocks really grow from before to after, and enough to be seen."""
    spec = json.loads(before["spec"])
    width = np.ceil(spec["model"]["hidden"] / spec["method"]["projection_ratio"])
    uncapped = width * before["rows_per_block"] < spec["method"]["max_block_size"]
    visible = block_size_slack(spec) < NEGLIGIBLE * before["saved_memory"]
    grows = before["rows_per_block"] < after["rows_per_block"]
    return bool(grows and uncapped and visible)
