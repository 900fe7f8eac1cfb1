"""Records that different versions of Python or of packages made, said in words.

Snakemake sees files and parameters, not what is installed: an update makes no record
anew, and old and new ones meet in one table. Each record keeps the versions that made
it, so this can at least be told.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable


def mixed_versions(provenances: Iterable[str]) -> list[str]:
    """One text for each package of which the records name several versions.

    Args:
        provenances: of one record each, as JSON (see records.describe_provenance).

    >>> mixed_versions(['{"python": "3.11.7"}', '{"python": "3.12.1"}'])
    ['python 3.11.7 (1), 3.12.1 (1)']
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for text in provenances:
        made_by = json.loads(text)
        versions = made_by.get("versions", {})
        for package, version in {"python": made_by.get("python"), **versions}.items():
            counts[package][str(version)] += 1
    return [
        f"{package} " + ", ".join(f"{v} ({n})" for v, n in sorted(versions.items()))
        for package, versions in counts.items()
        if len(versions) > 1
    ]


def describe_versions(provenances: Iterable[str]) -> str:
    """One sentence: the same versions everywhere, or which differ, and the way out."""
    mixed = mixed_versions(provenances)
    if not mixed:
        return "every record was made by the same versions of Python and packages"
    return (
        f"DIFFERENT VERSIONS made the records: {'; '.join(mixed)}; to make all of them"
        " anew, run snakemake with --forcerun train_run benchmark_training"
    )
