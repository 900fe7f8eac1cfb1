"""Answers of the searches for settings: the best by each aim, of each strategy.

A question is an aim: the least memory within max_drop, or the greatest accuracy within
max_memory. What the surrogate answers is chosen; random and uniform settings, measured
as often at most, show what the model of the surrogate is worth.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import xarray as xr

from pipeline_src.records import datasets
from pipeline_src.search.result import Found, SearchResult
from pipeline_src.settings.plans import ActivationSearch
from pipeline_src.settings.rounds import measured_results, search_of
from pipeline_src.settings.space import method_of

SURROGATE = "surrogate"


def choose_settings(
    start: xr.Dataset,  # of evaluation.start_search
    last: xr.Dataset,  # round, of rounds.propose_round
    evaluations: Sequence[xr.Dataset],  # all that it waited for
) -> xr.Dataset:
    """What the searches measured, and their answers to each question.

    Returns:
        Dim evaluation: all searches one after another, with the best so far. Dim
        answer, for each aim and strategy: memory and accuracy of the best, and its
        method as JSON, empty if there is none.

    Raises:
        ValueError: if the surrogate measured nothing that meets an aim.
    """
    search, results = search_of(start), measured_results(start, last, evaluations)
    frames = [
        _evaluations(results[name], strategy, aim)
        for name, (strategy, aim) in search.members.items()
    ]
    answers = [
        _answer(search, results, strategy, aim)
        for aim in search.aims
        for strategy in (SURROGATE, *search.strategies)
    ]
    joined = xr.concat(frames, "evaluation", combine_attrs="drop_conflicts")
    selection = joined.merge(_answers(answers))
    kept = ("search", "baseline", "full_memory", "provenance")
    selection.attrs = {name: start.attrs[name] for name in kept}
    return selection


def _evaluations(result: SearchResult, strategy: str, aim: str) -> xr.Dataset:
    """Evaluations of one search as rows, with the best so far beside them."""
    archive, curve = result.archive, result.curve
    rows = archive.sizes["evaluation"]
    number = datasets.attributes("1", "evaluation of the search")
    joined = xr.merge(
        [archive.drop_dims("variable"), curve], combine_attrs="drop_conflicts"
    )
    return joined.drop_vars("evaluation").assign_coords(
        number=("evaluation", archive["evaluation"].values, number),
        strategy=datasets.text_coord("evaluation", [strategy] * rows, "strategy"),
        aim=datasets.text_coord("evaluation", [aim] * rows, "what limits the search"),
    )


def _answer(
    search: ActivationSearch,
    results: Mapping[str, SearchResult],
    strategy: str,
    aim: str,
) -> dict[str, Any]:
    """The best by an aim of what a strategy measured."""
    name = f"{SURROGATE} {aim}" if strategy == SURROGATE else strategy
    result, limit = results[name], search.aims[aim]
    if aim == "max_drop":
        found = result.best_within_drop(limit)
    else:
        found = result.best_within_memory(limit)
    num_evaluations = result.archive.sizes["evaluation"]
    if found is None and strategy == SURROGATE:
        raise ValueError(
            f"expected a setting within {aim} = {getattr(search, aim)}, but none of the"
            f" {num_evaluations} measured is; allow more, list less compression, or"
            " take more selection_seeds, which make the mean less noisy"
        )
    return {
        "strategy": strategy,
        "aim": aim,
        "evaluations": num_evaluations,
        "memory": found.memory if found else np.nan,
        "accuracy": found.accuracy if found else np.nan,
        "method": _method_text(search, found),
    }


def _method_text(search: ActivationSearch, found: Found | None) -> str:
    if found is None:
        return ""
    return json.dumps(asdict(method_of(search, found.configuration)), sort_keys=True)


def _answers(answers: list[dict[str, Any]]) -> xr.Dataset:
    numbers = {
        "evaluations": ("1", "evaluations of the search"),
        "memory": ("byte", "memory of the best"),
        "accuracy": ("1", "validation accuracy of the best"),
    }
    texts = {"strategy": "strategy", "aim": "question", "method": "method as JSON"}
    return xr.Dataset(
        {
            f"answer_{name}": (
                "answer",
                np.array([one[name] for one in answers], float),
                datasets.attributes(*meaning),
            )
            for name, meaning in numbers.items()
        },
        {
            f"answer_{name}": datasets.text_coord(
                "answer", [one[name] for one in answers], meaning
            )
            for name, meaning in texts.items()
        },
    )
