"""Downloads that are cut off: nothing half-fetched stays, and the next is whole."""

import os
import signal
import socket
import threading
from contextlib import contextmanager

import pytest
from workplace import wait_for

from pipeline_src.graphs.fetching import FetchError, fetch_graph

FILE = "amazon_electronics_photo.npz"


@contextmanager
def server(pieces):
    """Answer each request with these pieces of 100,000 bytes, then hang up or hang."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            for piece in pieces:
                if piece is None:
                    stuck.append(connection)  # open, and silent
                    break
                connection.sendall(piece)
            else:
                connection.close()

    stuck = []
    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.close()
    for connection in stuck:
        connection.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_server_that_hangs_up_is_named_and_nothing_stays(tmp_path):
    with (
        server([bytes(100_000)] * 3) as address,
        pytest.raises(FetchError, match=r"expected 1000000 bytes, got 300000; run"),
    ):
        fetch_graph("Photo", tmp_path / "raw" / "Photo", address)
    assert not list((tmp_path / "raw").iterdir())


def test_after_a_kill_in_the_middle_the_next_fetch_starts_cleanly(tmp_path):
    """The killed one leaves a hidden folder; nobody takes it for what was asked."""
    raw = tmp_path / "raw"
    with server([bytes(100_000), None]) as address:
        if (child := os.fork()) == 0:
            try:
                fetch_graph("Photo", raw / "Photo", address)
            finally:
                os._exit(1)
        alive = ForkedProcess(child)
        wait_for(lambda: raw.exists() and list(raw.rglob(FILE)), alive)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    (leftover,) = raw.iterdir()
    assert leftover.name.startswith(".Photo.")
    with (
        server([b"<html>"]) as address,
        pytest.raises(FetchError),
    ):
        fetch_graph("Photo", raw / "Photo", address)
    assert not list(raw.iterdir()), "the leftover goes even if the next fetch fails"


class ForkedProcess:
    """What wait_for asks of a process."""

    def __init__(self, pid):
        self.pid = pid

    def poll(self):
        return None if os.waitpid(self.pid, os.WNOHANG) == (0, 0) else 1

    def communicate(self):
        return (f"process {self.pid} ended", None)
