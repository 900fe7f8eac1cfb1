"""Rounds of a search for settings of activation compression, each in a file.

The searches of one graph and model (the surrogate's for each aim, and what it is
compared with) go round by round together:

    propose_round(start)                     -> round 1: what is to be measured
    evaluate_settings(...), by any jobs      -> accuracies
    propose_round(start, round 1, accuracies) -> round 2, ...
    measured_results(start, last round, accuracies)

A round's file holds the archives of all its searches side by side. What several of them
ask for is measured once. The archives are those of `search.bits.search_bits`, whatever
jobs measured what, and the same round again is the same file: nothing depends on how
many rounds follow.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import xarray as xr

from pipeline_src.records import datasets
from pipeline_src.search.archive import SearchSettings
from pipeline_src.search.bits import Search
from pipeline_src.search.result import SearchResult
from pipeline_src.settings.plans import ActivationSearch
from pipeline_src.settings.space import (
    known_accuracies,
    search_space,
    setting_text,
)

SEARCH_SEED = 0


def propose_round(
    start: xr.Dataset,  # of evaluation.start_search
    previous: xr.Dataset | None = None,  # the round before; None for the first
    evaluations: Sequence[xr.Dataset] = (),  # all that the round before waited for
) -> xr.Dataset:
    """The archives of every search, with what each proposes next.

    Raises:
        ValueError: if an evaluation of the round before is missing.
    """
    with _continued(start, previous, evaluations) as folder:
        for search in _searches(start, folder).values():
            search.propose()
        return _joined(start, folder)


def measured_results(
    start: xr.Dataset,
    last: xr.Dataset,  # round
    evaluations: Sequence[xr.Dataset],  # all that it waited for
) -> dict[str, SearchResult]:
    """What each search knows once the last round has been measured.

    Raises:
        ValueError: if an evaluation is missing.
    """
    with _continued(start, last, evaluations) as folder:
        searches = _searches(start, folder)
        return {name: search.result() for name, search in searches.items()}


def search_of(start: xr.Dataset) -> ActivationSearch:
    """What is searched for; device and compilation do not matter here."""
    text = start.attrs["search"]
    return ActivationSearch.from_params(text, device="auto", compile="auto")


def _searches(start: xr.Dataset, folder: Path) -> dict[str, Search]:
    """Every search, with its archive in the folder; those that are there go on."""
    search = search_of(start)
    texts, memory = start["setting"].values.tolist(), start["memory"].values.tolist()
    table = dict(zip(texts, memory, strict=True))
    space = search_space(search, int(start.attrs["num_nodes"]), table)
    return {
        name: Search(
            SearchSettings(
                space,
                float(start.attrs["baseline"]),
                SEARCH_SEED,
                max_drop=search.aims["max_drop"] if aim == "max_drop" else None,
                max_memory=search.aims["max_memory"] if aim == "max_memory" else None,
                strategy=strategy,
                round_size=search.round_size,
            ),
            folder / f"{name}.nc",
        )
        for name, (strategy, aim) in search.members.items()
    }


@contextmanager
def _continued(
    start: xr.Dataset, previous: xr.Dataset | None, evaluations: Sequence[xr.Dataset]
) -> Iterator[Path]:
    """A folder of archives, one per search, in which nothing waits any more."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if previous is not None:
            known = known_accuracies(previous) | _means(evaluations)
            for name, text in json.loads(previous.attrs["settings"]).items():
                mine = previous.isel(evaluation=previous["search"].values == name)
                archive = mine.drop_vars("search").assign_attrs(settings=text)
                datasets.write_dataset(archive, folder / f"{name}.nc")
            for name, search in _searches(start, folder).items():
                archive = datasets.read_dataset(folder / f"{name}.nc")
                if bool(archive["accuracy"].isnull().any()):
                    _record(search, known)
        yield folder


def _means(evaluations: Sequence[xr.Dataset]) -> dict[str, float]:
    """Mean accuracy over seeds by the text of the setting."""
    return {
        str(text): float(accuracy)
        for part in evaluations
        for text, accuracy in zip(
            part["setting"].values, part["accuracy"].mean("seed").values, strict=True
        )
    }


def _record(search: Search, known: Mapping[str, float]) -> None:
    """Tell a search what it waits for."""
    for configuration in search.propose():  # what waits, until all of it is recorded
        text = setting_text(configuration)
        if text not in known:
            raise ValueError(
                f"expected an evaluation of {text}, got {len(known)} of other settings;"
                " make the evaluations of this round anew"
            )
        search.record(configuration, known[text])


def _joined(start: xr.Dataset, folder: Path) -> xr.Dataset:
    """The archives of a folder side by side."""
    archives = {
        name: datasets.read_dataset(folder / f"{name}.nc")
        for name in search_of(start).members
    }
    parts = [
        archive.assign_coords(
            search=datasets.text_coord(
                "evaluation", [name] * archive.sizes["evaluation"], "search"
            )
        )
        for name, archive in archives.items()
    ]
    joined = xr.concat(parts, "evaluation", combine_attrs="drop_conflicts")
    settings = {name: one.attrs["settings"] for name, one in archives.items()}
    joined.attrs = {"settings": json.dumps(settings)}
    return joined
