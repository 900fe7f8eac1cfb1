"""Fetching of raw graph files: all files of a source, verified, or none.

Everything is downloaded into a scratch folder beside the target and renamed at the
end. A file is refused when it is shorter than the server announced, when its checksum
is known (`raw_sources.py`) and differs, or when it is a web page in place of data,
which is how download services answer when they refuse. The target then does not exist.

A mirror, for machines without internet, replaces the public addresses: a folder (a path
or a file:// address) or an http(s) address that holds the files in the layout of the
usual loaders,

    <mirror>/Cora/raw/ind.cora.x         of Planetoid, as CiteSeer and PubMed
    <mirror>/Photo/raw/amazon_electronics_photo.npz      of Amazon, as Computers
    <mirror>/CS/raw/ms_academic_cs.npz   of Coauthor; Physics: ms_academic_phy.npz
    <mirror>/Flickr/raw/adj_full.npz     and feats.npy, class_map.json, role.json
    <mirror>/Reddit/raw/reddit_data.npz  and reddit_graph.npz
    <mirror>/ogbn_arxiv/raw/edge.csv.gz  ogb's folder, which is arxiv.zip unpacked
    <mirror>/ogbn_arxiv/split/time/train.csv.gz

which is also the layout that fetching leaves behind, so that one machine's
resources/raw is another one's mirror. Files from a mirror are verified alike.
"""

import errno
import hashlib
import http.client
import os
import shutil
import struct
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from pipeline_src.graphs.raw_sources import RAW_SOURCES, RawFile, RawSource

TIMEOUT = 60  # seconds without a byte
PIECE = 1 << 20  # bytes read at once
SCRATCH = ".tmp"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Of one raw file; Reddit's features, the largest, have 1.1 GB if kept as float64.
MAX_BYTES = 1 << 32
# What reading a damaged zip archive can raise.
ZIP_DAMAGE = (
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class FetchError(Exception):
    """A raw file could not be had, or is not the published one."""


def fetch_graph(name: str, folder: str | Path, data_mirror: str | None = None) -> None:
    """Fetch all raw files of the source `name` into `folder`, or nothing.

    Args:
        name: a key of RAW_SOURCES.
        folder: must not exist yet; its parents are made.
        data_mirror: in place of the public addresses, see mirror_place.

    Raises:
        ValueError: if data_mirror is none of what a mirror can be.
        FetchError: naming the file, what was expected, what came, and the way out.
        FileExistsError: if the folder exists.
    """
    source, folder = RAW_SOURCES[name], Path(folder)
    mirror = None if data_mirror is None else mirror_place(data_mirror)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: delete it to fetch {name} again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for killed in folder.parent.glob(f".{folder.name}.*{SCRATCH}"):
        shutil.rmtree(killed, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}.", suffix=SCRATCH, dir=folder.parent
    ) as scratch:
        complete = Path(scratch, "complete")  # with usual rights, unlike the scratch
        for file in source.files:
            (complete / file.path).parent.mkdir(parents=True, exist_ok=True)
        if mirror is not None:
            for file in source.files:
                _copy(f"{mirror}/{name}/{file.path}", complete, file)
        elif source.archive is not None:
            archive = Path(scratch, "archive.zip")
            _download(source.archive, archive)
            _unpack(archive, source, complete)
        else:
            for file in source.files:
                _copy(str(file.url), complete, file)
        for file in source.files:
            _verify(complete / file.path, file)
        complete.rename(folder)


def mirror_place(data_mirror: str) -> str:
    """The folder or http(s) address that is meant, without a slash at its end.

    A path may begin with ~ or ~user, and is relative to the working folder; file://
    addresses are folders of this machine.

    Raises:
        ValueError: if it is neither, naming what is allowed.

    >>> mirror_place("file:///data/my%20graphs/"), mirror_place("../graphs")
    ('/data/my graphs', '../graphs')
    """
    allowed = "a folder (/path, ~/path, file:///path) or an http(s) address"
    scheme, separator, rest = data_mirror.partition("://")
    scheme = scheme.lower()
    if separator and scheme == "file":
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise ValueError(
                f"expected {allowed}; got {data_mirror!r}, which names the machine "
                f"{host!r}: write file:///path with three slashes"
            )
        data_mirror = urllib.request.url2pathname(slash + path)
    elif separator and scheme in ("http", "https"):
        if not urllib.parse.urlsplit(data_mirror).hostname:
            raise ValueError(f"expected {allowed}; got {data_mirror!r} without a host")
        return f"{scheme}://{rest.rstrip('/')}"
    elif separator and scheme.isalnum():
        raise ValueError(f"expected {allowed}; got {data_mirror!r}")
    folder = os.path.expanduser(data_mirror)
    if folder.startswith("~"):
        raise ValueError(
            f"expected {allowed}; got {data_mirror!r}, whose home is not known here: "
            "write the whole path, or ./~ for a folder of that name"
        )
    return folder.rstrip("/") or "/"


def _copy(origin: str, complete: Path, file: RawFile) -> None:
    """Bring one file from an address or, on a mirror, from a folder."""
    if origin.startswith(("http://", "https://")):
        _download(origin, complete / file.path)
        return
    if Path(origin).exists() and not Path(origin).is_file():
        raise FetchError(
            f"{origin}: expected a file with an end, got a device or folder"
        )
    try:
        with Path(origin).open("rb") as content:
            _write_bounded(content, complete / file.path, origin)
    except OSError as error:
        raise FetchError(
            f"the mirror does not give {origin} ({error.strerror}); its layout is "
            "described in pipeline_src/graphs/fetching.py"
        ) from error


def _download(url: str, path: Path) -> None:
    """Stream one address into a file and compare the length with the announced one."""
    request = urllib.request.Request(url, headers={"User-Agent": "pipeline-src"})
    with _network_errors(url), urllib.request.urlopen(request, timeout=TIMEOUT) as body:
        announced = body.headers.get("Content-Length")
        _write_bounded(body, path, url)
    received = path.stat().st_size
    if announced is not None and received != int(announced):
        raise FetchError(
            f"truncated download of {url}: expected {announced} bytes, "
            f"got {received}; run snakemake again"
        )


def _write_bounded(content: IO[bytes], path: Path, origin: str) -> None:
    """Copy a stream into a file, and stop where no published file goes on."""
    received = 0
    with _disk_errors(path), path.open("wb") as file:
        while piece := content.read(PIECE):
            received += len(piece)
            if received > MAX_BYTES:
                raise FetchError(
                    f"{origin}: expected at most {MAX_BYTES} bytes, got more: it is "
                    "not the published file"
                )
            file.write(piece)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Tell a disk that takes no more from a server or an archive at fault."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise FetchError(
            f"{path} cannot be written: {error.strerror}. Nothing of it is left; free"
            " some space there and run snakemake again"
        ) from error


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    """Turn what urllib raises into one message with a way out."""
    try:
        yield
    except urllib.error.HTTPError as error:
        reason = f"the server answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        reason = str(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = f"{type(error).__name__} {error}"
    else:
        return
    raise FetchError(
        f"{url} cannot be downloaded: {reason}. Try again, or set data_mirror to a "
        "folder or http(s) address that holds the raw files"
    )


def _unpack(archive: Path, source: RawSource, complete: Path) -> None:
    """Extract the files of the source; refuse an archive that reaches outside."""
    try:
        with zipfile.ZipFile(archive) as members:
            for name in members.namelist():
                path = PurePosixPath(name.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or ":" in name:
                    raise FetchError(
                        f"{source.archive} holds the member {name!r}, which reaches "
                        "outside its folder: the archive is not the published one"
                    )
            for file in source.files:
                name = source.member(file)
                # Its bytes alone: a link or a device of the archive becomes a file.
                with members.open(name) as member:
                    _write_bounded(member, complete / file.path, name)
    except KeyError as error:
        raise FetchError(
            f"{source.archive} lacks a file: {error.args[0]}; expected "
            + ", ".join(source.member(file) for file in source.files)
        ) from error
    except ZIP_DAMAGE as error:
        raise FetchError(
            f"{source.archive} is not a sound zip archive ({error}); "
            "run snakemake again"
        ) from error


def _verify(path: Path, file: RawFile) -> None:
    """Compare with the checksum; without one, refuse at least a web page."""
    if file.checksum is None:
        with path.open("rb") as content:
            start = content.read(64).lstrip()
        if start.startswith(b"<"):
            raise FetchError(
                f"{file.path}: expected data, got a web page beginning {start!r}. "
                "The server refuses to give the file; open its address in a browser "
                "and set data_mirror to a folder that holds it"
            )
        return
    kind, _, expected = file.checksum.partition(":")
    with path.open("rb") as content:
        received = _digest(kind, content, path.stat().st_size)
    if received != expected:
        raise FetchError(
            f"{file.path} is not the published file: expected {kind} {expected}, "
            f"got {received}. Fetch it again or from another place (data_mirror)"
        )


def _digest(kind: str, content: BinaryIO, num_bytes: int) -> str:
    """Hexadecimal sha256, or git's blob id: sha1 with the length in front."""
    if kind == "sha256":
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % num_bytes, usedforsecurity=False)
    while piece := content.read(PIECE):
        digest.update(piece)
    return digest.hexdigest()
