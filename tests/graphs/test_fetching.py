"""Fetching from public addresses and mirrors: everything, verified, or nothing."""

import hashlib
import os
import stat
import threading
import zipfile
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from raw_archives import (
    write_flickr,
    write_gnn_benchmark,
    write_ogbn_arxiv,
    write_planetoid,
    write_reddit,
)

from pipeline_src.graphs import fetching
from pipeline_src.graphs.fetching import FetchError, fetch_graph
from pipeline_src.graphs.raw import READERS, read_raw_graph
from pipeline_src.graphs.raw_sources import RAW_SOURCES, RawFile, RawSource

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data"


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; a path that begins with /truncated announces too much."""

    def log_message(self, *_):
        pass

    def translate_path(self, path):
        return super().translate_path(path.removeprefix("/truncated"))

    def send_header(self, keyword, value):
        if keyword == "Content-Length" and self.path.startswith("/truncated"):
            value = str(int(value) + 1)
        super().send_header(keyword, value)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Address of a server on the loopback address, and the folder that it serves."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    served = tmp_path / "served"
    served.mkdir()

    def handler(*arguments):
        return Handler(*arguments, directory=str(served))

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", served
        running.shutdown()


@pytest.fixture
def target(tmp_path):
    """Where raw files go; each failed fetch must leave its parent empty."""
    return tmp_path / "resources" / "raw" / "Source"


def assert_nothing_left(target: Path) -> None:
    assert not any(target.parent.iterdir())


def without_checksums(source: RawSource) -> RawSource:
    files = tuple(replace(file, checksum=None) for file in source.files)
    return replace(source, files=files)


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def zip_of(folder: Path, archive: Path, top: str) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in files_below(folder).items():
            file.writestr(f"{top}/{name}".lstrip("/"), content)


MADE_UP = {
    "Cora": lambda folder: write_planetoid(folder, "cora"),
    "CiteSeer": lambda folder: write_planetoid(folder, "citeseer", gaps=5),
    "PubMed": lambda folder: write_planetoid(folder, "pubmed"),
    "Computers": lambda folder: write_gnn_benchmark(
        folder, "amazon_electronics_computers.npz"
    ),
    "Photo": lambda folder: write_gnn_benchmark(folder, "amazon_electronics_photo.npz"),
    "CS": lambda folder: write_gnn_benchmark(folder, "ms_academic_cs.npz"),
    "Physics": lambda folder: write_gnn_benchmark(folder, "ms_academic_phy.npz"),
    "Flickr": write_flickr,
    "Reddit": write_reddit,
    "ogbn_arxiv": write_ogbn_arxiv,
}


def test_every_source_has_a_reader_and_a_made_up_archive():
    assert {source.graph for source in RAW_SOURCES.values()} == set(READERS)
    assert set(MADE_UP) == set(RAW_SOURCES)


@pytest.mark.parametrize("kind", ["folder", "address", "public"])
@pytest.mark.parametrize("name", RAW_SOURCES)
def test_fetched_files_are_read(name, kind, server, target, monkeypatch):
    """From a folder, an http mirror, or the public addresses: the same files.

    Made-up files have other checksums than the published ones, hence none here; the
    public addresses are replaced by loopback ones that end alike.
    """
    address, served = server
    MADE_UP[name](served / name)
    source = without_checksums(RAW_SOURCES[name])
    if source.archive is not None:
        archived = served / name / source.archive_omits
        zip_of(archived, served / "archive.zip", source.archive_folder)
        source = replace(source, archive=f"{address}/archive.zip")
    else:
        local = (replace(f, url=f"{address}/{name}/{f.path}") for f in source.files)
        source = replace(source, files=tuple(local))
    monkeypatch.setitem(RAW_SOURCES, name, source)
    mirror = {"folder": str(served), "address": f"{address}/", "public": None}[kind]
    fetch_graph(name, target, mirror)
    wanted = {file.path for file in source.files}
    offered = files_below(served / name)
    assert files_below(target) == {path: offered[path] for path in wanted}
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert read_raw_graph(source.graph, target).num_nodes > 0


@pytest.mark.parametrize(
    "mirror",
    [
        *("~/my graphs", "{home}/my graphs/", "my graphs", "./my graphs//"),
        *("file://{home}/my%20graphs", "FILE://localhost{home}/my graphs"),
    ],
)
def test_a_mirror_may_be_named_in_many_ways(mirror, tmp_path, target, monkeypatch):
    """A home, an address of this machine, or relative to the working folder."""
    home = tmp_path
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    monkeypatch.setitem(RAW_SOURCES, "Photo", without_checksums(RAW_SOURCES["Photo"]))
    MADE_UP["Photo"](home / "my graphs" / "Photo")
    fetch_graph("Photo", target, mirror.format(home=home))
    assert files_below(target) == files_below(home / "my graphs" / "Photo")


@pytest.mark.parametrize(
    ("mirror", "got"),
    [
        ("ftp://x.org/graphs", r"got 'ftp://x\.org/graphs'"),
        ("s3://bucket", "got 's3://bucket'"),
        ("file://server/graphs", "names the machine 'server': write file:///path"),
        ("http://", "got 'http://' without a host"),
        ("https:///graphs", "got 'https:///graphs' without a host"),
        ("~no-such-user/graphs", r"whose home is not known here: write the whole"),
    ],
)
def test_what_no_mirror_can_be_is_refused_with_what_is_allowed(mirror, got, target):
    message = rf"expected a folder \(.*, file:///path\) or an http\(s\) .*{got}"
    with pytest.raises(ValueError, match=message):
        fetch_graph("Photo", target, mirror)
    assert not target.parent.exists()


@pytest.mark.parametrize("name", ["Cora", "PubMed", "Computers"])
@pytest.mark.parametrize("kind", ["folder", "address"])
def test_real_files_pass_their_checksums(name, kind, server, target):
    if not (PUBLISHED / name).is_dir():
        pytest.skip(f"no real files of {name} in ../shared/data")
    address, served = server
    (served / name).symlink_to(PUBLISHED / name)
    fetch_graph(name, target, str(PUBLISHED) if kind == "folder" else address)
    assert len(files_below(target)) == len(RAW_SOURCES[name].files)


@pytest.mark.parametrize("name", ["Cora", "Photo", "ogbn_arxiv"])
@pytest.mark.parametrize("kind", ["folder", "address"])
def test_altered_files_are_refused_from_a_mirror_too(name, kind, server, target):
    """Made-up files in the place of published ones, by sha256 and by git's id."""
    address, served = server
    MADE_UP[name](served / name)
    mirror = str(served) if kind == "folder" else address
    message = r"is not the published file: expected (sha256|git) \w+, got \w+\. Fetch"
    with pytest.raises(FetchError, match=message):
        fetch_graph(name, target, mirror)
    assert_nothing_left(target)


def test_a_single_altered_bit_is_noticed(server, target, monkeypatch):
    _, served = server
    content = bytes(range(256)) * 10
    blob = b"blob 2560\0" + content
    for kind, digest in {
        "sha256": hashlib.sha256(content).hexdigest(),
        "git": hashlib.sha1(blob).hexdigest(),
    }.items():
        file = RawFile("file", checksum=f"{kind}:{digest}")
        monkeypatch.setitem(RAW_SOURCES, kind, RawSource(kind, (file,)))
        (served / kind).mkdir()
        (served / kind / "file").write_bytes(content)
        fetch_graph(kind, target.with_name(kind), str(served))
        (served / kind / "file").write_bytes(b"\1" + content[1:])
        with pytest.raises(FetchError, match=f"expected {kind} {digest}, got"):
            fetch_graph(kind, target, str(served))
        assert not target.exists()


def test_a_truncated_download_is_refused(server, target):
    address, served = server
    write_flickr(served / "Flickr")
    size = (served / "Flickr" / "raw" / "adj_full.npz").stat().st_size
    message = rf"truncated .*adj_full.npz: expected {size + 1} bytes, got {size}; run"
    with pytest.raises(FetchError, match=message):
        fetch_graph("Flickr", target, f"{address}/truncated")
    assert_nothing_left(target)


def test_a_missing_file_is_refused_after_others_have_come(server, target):
    address, served = server
    write_flickr(served / "Flickr")
    (served / "Flickr" / "raw" / "role.json").unlink()
    with pytest.raises(FetchError, match=r"role\.json .*answered 404 .*data_mirror"):
        fetch_graph("Flickr", target, address)
    assert_nothing_left(target)
    with pytest.raises(FetchError, match=r"mirror does not give .*role\.json \(No su"):
        fetch_graph("Flickr", target, str(served))
    assert_nothing_left(target)


def test_a_silent_server_is_said_to_be_so(target):
    """Port 9 of the loopback address (discard) is closed on usual machines."""
    with pytest.raises(FetchError, match=r"cannot be downloaded: .*refused"):
        fetch_graph("Flickr", target, "http://127.0.0.1:9")
    assert_nothing_left(target)


def test_a_web_page_in_place_of_data_is_refused(server, target):
    """As services answer that want a click first, with status 200."""
    address, served = server
    write_flickr(served / "Flickr")
    page = "\n<!DOCTYPE html><title>Too many users have viewed this file</title>"
    (served / "Flickr" / "raw" / "feats.npy").write_text(page)
    with pytest.raises(FetchError, match=r"feats\.npy: expected data, got a web page"):
        fetch_graph("Flickr", target, address)
    assert_nothing_left(target)


@pytest.fixture
def arxiv_archive(server, monkeypatch):
    """The public archive of ogbn-arxiv, made up and served: its path."""
    address, served = server
    write_ogbn_arxiv(served / "files")
    zip_of(served / "files", served / "arxiv.zip", "arxiv")
    source = replace(
        without_checksums(RAW_SOURCES["ogbn_arxiv"]), archive=f"{address}/arxiv.zip"
    )
    monkeypatch.setitem(RAW_SOURCES, "ogbn_arxiv", source)
    return served / "arxiv.zip"


@pytest.mark.parametrize(
    "name", ["../outside", "arxiv/../../outside", "/outside", "C:\\outside", "a\\..\\b"]
)
def test_an_archive_that_reaches_outside_is_refused(arxiv_archive, target, name):
    with zipfile.ZipFile(arxiv_archive, "a") as file:
        file.writestr(name, "planted")
    with pytest.raises(FetchError, match=r"holds the member .* outside its folder"):
        fetch_graph("ogbn_arxiv", target)
    assert_nothing_left(target)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFBLK, stat.S_IFIFO])
def test_a_link_or_device_of_an_archive_becomes_a_file(arxiv_archive, target, kind):
    """A wanted member that is a link to a file outside: its text, not its target."""
    with zipfile.ZipFile(arxiv_archive) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["arxiv/raw/edge.csv.gz"] = b"/etc/passwd"
    with zipfile.ZipFile(arxiv_archive, "w") as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = (kind | 0o777) << 16
            archive.writestr(member, content)
    fetch_graph("ogbn_arxiv", target)
    paths = [path for path in target.rglob("*") if not path.is_dir()]
    assert all(stat.S_ISREG(path.lstat().st_mode) for path in paths)
    assert (target / "raw" / "edge.csv.gz").read_bytes() == b"/etc/passwd"
    with pytest.raises(ValueError, match="does not hold sound raw files"):
        read_raw_graph("ogbn_arxiv", target)


@pytest.mark.parametrize("kind", ["archive", "address", "folder"])
def test_a_file_without_end_is_given_up(
    arxiv_archive, server, target, monkeypatch, kind
):
    """A megabyte of zeros that the archive holds in a thousandth of it."""
    address, served = server
    zeros = served / "ogbn_arxiv" / "raw" / "edge.csv.gz"
    zeros.parent.mkdir(parents=True)
    zeros.write_bytes(bytes(1 << 20))
    with zipfile.ZipFile(arxiv_archive, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(zeros, "arxiv/raw/edge.csv.gz")
    assert arxiv_archive.stat().st_size < 2000
    monkeypatch.setattr(fetching, "MAX_BYTES", 100_000)
    mirror = {"archive": None, "address": address, "folder": str(served)}[kind]
    with pytest.raises(FetchError, match=r"edge\.csv\.gz: expected at most 100000 byt"):
        fetch_graph("ogbn_arxiv", target, mirror)
    assert_nothing_left(target)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_device_on_a_mirror_is_not_read(server, target, make):
    """Reading either would never end."""
    _, served = server
    write_flickr(served / "Flickr")
    (served / "Flickr" / "raw" / "feats.npy").unlink()
    make(served / "Flickr" / "raw" / "feats.npy")
    with pytest.raises(FetchError, match=r"feats\.npy: expected a file with an end"):
        fetch_graph("Flickr", target, str(served))
    assert_nothing_left(target)


def test_an_archive_without_a_file_is_refused(arxiv_archive, server, target):
    (server[1] / "files" / "raw" / "edge.csv.gz").unlink()
    zip_of(server[1] / "files", arxiv_archive, "arxiv")
    with pytest.raises(FetchError, match=r"lacks a file: .*arxiv/raw/edge\.csv\.gz"):
        fetch_graph("ogbn_arxiv", target)
    assert_nothing_left(target)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_a_damaged_archive_is_refused(arxiv_archive, target, place):
    """Bytes overwritten in a member or in the directory of the archive.

    The archive stores its members as they are, each with a checksum.
    """
    content = bytearray(arxiv_archive.read_bytes())
    start = int(place * len(content))
    content[start : start + 20] = b"x" * len(content[start : start + 20])
    arxiv_archive.write_bytes(content)
    with pytest.raises(FetchError, match=r"(not a sound zip archive|lacks a file)"):
        fetch_graph("ogbn_arxiv", target)
    assert_nothing_left(target)


def test_an_interrupted_fetch_leaves_nothing(server, target, monkeypatch):
    """^C in the middle of a download."""
    address, served = server
    write_flickr(served / "Flickr")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "_verify", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_graph("Flickr", target, address)
    assert_nothing_left(target)


def test_what_is_there_is_not_overwritten(target):
    target.mkdir(parents=True)
    (target / "mine").touch()
    with pytest.raises(FileExistsError, match="delete it to fetch Flickr again"):
        fetch_graph("Flickr", target, "nowhere")
    assert [path.name for path in target.iterdir()] == ["mine"]
