"""What a configuration says of a graph of one's own, and which files hold it.

Light, because every start of Snakemake asks it: the bytes of files are
hashed here, and never understood.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

FILE_KINDS = (".pt", ".npz")
EDGE_TABLE, FEATURE_TABLE, LABEL_TABLE = "edges.csv", "features.csv", "labels.csv"
SPLIT_TABLE = "split.csv"  # may be missing
# Signs that Snakemake takes for names to fill in where it sees a file's name.
RESERVED_SIGNS = frozenset("{}<>")


@dataclass(frozen=True)
class GivenSplit:
    """How nodes are split: a column of the file's masks, or shares and a seed."""

    train: float | None = None  # share of each class
    val: float | None = None
    seed: int = 0
    column: int | None = None  # of masks with several, counted from 0

    @property
    def made(self) -> bool:
        """Whether the split is made here, whatever the file holds."""
        return self.train is not None


@dataclass(frozen=True)
class GivenGraph:
    """An entry of `graphs` in a configuration, with its defaults."""

    path: str
    undirected: bool | None = None  # None: refused where directions differ
    repeated_edges: Literal["refuse", "merge"] = "refuse"
    self_loops: Literal["refuse", "keep", "remove"] = "refuse"
    unlabeled: Literal["refuse", "exclude"] = "refuse"
    ignore: tuple[str, ...] = ()  # arrays that belong to edges and stay unread
    split: GivenSplit | None = None

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "GivenGraph":
        """From an entry of the configuration, or from what to_params gave."""
        named = {field.name for field in fields(cls)} & set(params)
        given = {name: params[name] for name in named}
        given["ignore"] = tuple(given.get("ignore", ()))
        if given.get("split") is not None:
            given["split"] = GivenSplit(**given["split"])
        return cls(**given)

    def to_params(self) -> dict[str, Any]:
        """Plain values, in which Snakemake sees a change."""
        return {**asdict(self), "ignore": list(self.ignore)}

    @property
    def place(self) -> Path:
        """The file or folder, relative to the working folder or absolute."""
        return Path(self.path).expanduser()


def given_files(given: GivenGraph) -> list[str]:
    """The files that the graph is read from, as a rule's inputs."""
    place = given.place
    if place.suffix in FILE_KINDS:
        return [str(place)]
    tables = [EDGE_TABLE, FEATURE_TABLE, LABEL_TABLE]
    if (place / SPLIT_TABLE).exists():
        tables.append(SPLIT_TABLE)
    return [str(place / table) for table in tables]


def digest_of_files(paths: Iterable[str]) -> str:
    """What the files hold, in 64 hexadecimal digits; missing ones count as such."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        content = "missing"
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def problems_of_place(given: GivenGraph) -> Iterator[str]:
    """What keeps the files from being found or read, one sentence each."""
    if signs := RESERVED_SIGNS & set(given.path):
        yield (
            "expected a path without { } < and >, which Snakemake takes for names to "
            f"fill in, got {' '.join(sorted(signs))}; rename the file or its folder"
        )
        return
    try:
        place = given.place
        found, folder, file = place.exists(), place.is_dir(), place.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, no home
        yield f"expected a path that can be looked up, got an error: {error}"
        return
    if not found:
        yield (
            f"expected a file or a folder, got none at {place.absolute()}; relative "
            "paths count from the working folder, that of --directory"
        )
    elif place.suffix in FILE_KINDS and not file:
        yield f"expected a file, got a folder or a device at {place.absolute()}"
    elif place.suffix not in FILE_KINDS and not folder:
        yield (
            f"expected a file that ends in {' or '.join(FILE_KINDS)}, or a folder of "
            f"CSV tables, got {place.name!r}; docs/tutorial/own-graph.md says how to "
            "write one"
        )
    elif folder:
        for table in map(Path, given_files(given)):
            if not table.is_file():
                yield f"expected a table {table.name}, got none in {place.absolute()}"
