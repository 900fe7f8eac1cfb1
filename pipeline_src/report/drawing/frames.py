"""Tidy frames out of the collected dataset: one row per mark, named for its panel."""

from collections.abc import Iterable

import pandas as pd
import xarray as xr

MIB = 2**20  # bytes


def tidy_runs(runs: xr.Dataset) -> pd.DataFrame:
    """One row per entry; place and method as categories in order of appearance."""
    frame = runs.to_dataframe().reset_index()
    frame["place"] = places(frame["graph"], frame["model"])
    frame["method"] = ordered(frame["label"])
    return frame


def name_fp32_memory(frame: pd.DataFrame) -> pd.DataFrame:
    """Add what FP32 keeps, the column `memory` [MiB], to the name of each place."""
    known = frame[frame["policy"] == "full"].set_index("place")["memory"]
    names = {
        place: f"{place} (FP32: {known[place]:.2f} MiB)" if place in known else place
        for place in frame["place"].cat.categories
    }
    return frame.assign(place=frame["place"].cat.rename_categories(names))


def split_fp32(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part FP32 from compressed methods, whose categories forget it."""
    is_fp32 = frame["policy"] == "full"
    compressed = frame[~is_fp32].copy()
    for name in ("place", "method", "family"):
        if name in frame and isinstance(frame[name].dtype, pd.CategoricalDtype):
            compressed[name] = compressed[name].cat.remove_unused_categories()
    fp32 = frame[is_fp32].assign(method=frame["method"][is_fp32].astype(str))
    return fp32, compressed


def places(graphs: Iterable[str], models: Iterable[str]) -> "pd.Categorical[str]":
    """Return the names of panels, one per graph and model."""
    return ordered(
        [f"{graph}, {model}" for graph, model in zip(graphs, models, strict=True)]
    )


def ordered(texts: Iterable[str]) -> "pd.Categorical[str]":
    """Return the texts as categories in order of first appearance."""
    texts = list(texts)
    return pd.Categorical(texts, list(dict.fromkeys(texts)))
