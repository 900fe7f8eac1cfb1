"""How well each law describes observed positions, and what boundaries gain on them."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pipeline_src.report.tables.table import Table, text_column

LAW_NAMES = {
    "uniform": "uniform",
    "normal": "normal",
    "truncated_normal": "truncated normal",
    "clipped_normal": "clipped normal",
}
REDUCTIONS = ("predicted", "achieved", "best")


def distribution_table(distributions: Sequence[xr.Dataset]) -> Table:
    """How well each law describes the observed positions, and what its bins gain."""
    rows = []
    for dataset in distributions:
        spec = json.loads(dataset.attrs["spec"])
        for epoch in dataset["epoch"].values:
            for tensor in dataset["tensor"].values:
                for projected in dataset["projected"].values:
                    one = dataset.sel(epoch=epoch, tensor=tensor, projected=projected)
                    if bool(np.isfinite(one["jensen_shannon"].values).any()):
                        rows.append(_distribution_row(spec, one))
    values = pd.DataFrame(rows, columns=_distribution_columns())
    shown = values[["graph", "model", "layer", "tensor", "projected"]].copy()
    shown.insert(2, "epoch", text_column(values["epoch"], "{:.0f}"))
    for law in LAW_NAMES.values():
        shown[f"JS {law} [bit]"] = text_column(values[f"JS {law} [bit]"], "{:.4f}")
    shown["JS noise [bit]"] = text_column(values["JS noise [bit]"], "{:.4f}")
    for law in LAW_NAMES.values():
        shown[f"KS {law}"] = text_column(values[f"KS {law}"], "{:.3f}")
    for kind in REDUCTIONS:
        column = f"variance reduction {kind} [%]"
        shown[column] = text_column(values[column], "{:.2f}")
    return Table(
        "Distributions",
        "Observed positions of compressed activations against four laws:"
        " Jensen–Shannon divergence (JS, in bits; noise: what a sample of this size has"
        " from its own law) and Kolmogorov–Smirnov distance (KS); smaller is closer."
        " Variance reduction: rounding variance that the variance-minimised boundaries"
        " save against even ones, as the clipped normal predicts, as achieved on the"
        " observed values, and the best that any boundaries could do; negative means"
        " harm.",
        values,
        shown,
    )


def _distribution_columns() -> list[str]:
    columns = ["graph", "model", "epoch", "layer", "tensor", "projected"]
    columns += [f"JS {law} [bit]" for law in LAW_NAMES.values()]
    columns += [f"KS {law}" for law in LAW_NAMES.values()]
    columns += [f"KS p-value {law}" for law in LAW_NAMES.values()]
    columns += ["JS noise [bit]"]
    return columns + [f"variance reduction {kind} [%]" for kind in REDUCTIONS]


def _distribution_row(spec: dict[str, Any], one: xr.Dataset) -> tuple[Any, ...]:
    layer, _, tensor = str(one["tensor"].item()).partition(".")
    place = (spec["graph"], spec["model"]["name"], int(one["epoch"].item()))
    projected = "yes" if int(one["projected"].item()) else "no"
    fits = [
        one[name].sel(law=law).item()
        for name in ("jensen_shannon", "kolmogorov_smirnov", "ks_p_value")
        for law in LAW_NAMES
    ]
    fits.append(one["jensen_shannon_noise"].item())
    reductions = [100 * one[f"variance_reduction_{kind}"].item() for kind in REDUCTIONS]
    return *place, layer, tensor.replace("_", " "), projected, *fits, *reductions
