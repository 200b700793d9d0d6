"""A hub on this machine: what of the Hugging Face hub's interface a download needs, over a folder."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from qsjax.hub import Address, fetch, look, require_network

COMMIT = "c0ffee" + 34 * "0"
REPO = "owner/model"
SMALL = 1000
"""Bytes below which a file is git's and has no SHA-256."""
BLOCK = 1 << 14


class Hub(ThreadingHTTPServer):
    """One model.

    Attributes:
        folder: its files.
        sent: bytes of content so far.
        asked: names of the files asked for, and from which byte on, in order.
        revisions: what it calls its revisions.
        ranges: whether it knows parts of files.
        on_block: called behind every block of content with `sent`.
        damage: names of files whose first byte is sent wrong.
        fault: status and error code of every answer; None for none.
        commit: what it calls its commit.
        listed: a name that is listed and is not there.
        other: end of a path -> what answers in place of this hub; it gets the request.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.sent = folder, 0
        self.asked: list[tuple[str, int]] = []
        self.revisions = {"main", COMMIT}
        self.ranges = True
        self.counting = threading.Lock()
        self.on_block: Callable[[int], None] = lambda sent: None
        self.damage: set[str] = set()
        self.fault: tuple[int, str] | None = None
        self.commit = COMMIT
        self.listed: str | None = None
        self.other: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}

    @property
    def address(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def siblings(self) -> list[dict]:
        """The listing, as the hub gives it with the sizes of blobs."""
        found = [
            _sibling(path, self.folder) for path in sorted(self.folder.rglob("*")) if path.is_file()
        ]
        if self.listed is not None:
            found.append({"rfilename": self.listed, "size": 1, "blobId": 40 * "0"})
        return found


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        for end, other in self.server.other.items():
            if path.endswith(end):
                with suppress(BrokenPipeError, ConnectionResetError):
                    other(self)
                self.close_connection = True
                return None
        if self.server.fault is not None:
            status, code = self.server.fault
            return self._answer(status, b"{}", {"X-Error-Code": code})
        if path in (f"/api/models/{REPO}/revision/{name}" for name in self.server.revisions):
            listing = {"id": REPO, "sha": self.server.commit, "siblings": self.server.siblings()}
            return self._answer(200, json.dumps(listing).encode())
        if path.startswith(f"/api/models/{REPO}/revision/"):
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if path.startswith(begin := f"/{REPO}/resolve/{self.server.commit}/"):
            return self._file(path.removeprefix(begin))
        return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _file(self, name: str) -> None:
        content = (self.server.folder / name).read_bytes()
        if name in self.server.damage:
            content = bytes([content[0] ^ 1]) + content[1:]
        part = self.server.ranges and "Range" in self.headers
        ranged = self.headers["Range"] if part else "bytes=0-"
        first, last = ranged.removeprefix("bytes=").split("-")
        first, end = int(first), min(int(last) + 1 if last else len(content), len(content))
        with self.server.counting:
            self.server.asked.append((name, first))
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(end - first))
        if part:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")
        self.end_headers()
        # What is on its way when a client dies is lost to it: let that be little.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BLOCK)
        try:
            for start in range(first, end, BLOCK):
                block = content[start : min(start + BLOCK, end)]
                self.wfile.write(block)
                with self.server.counting:
                    self.server.sent += len(block)
                    self.server.on_block(self.server.sent)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _sibling(path: Path, folder: Path) -> dict:
    content = path.read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {
        "rfilename": path.relative_to(folder).as_posix(),
        "size": len(content),
        "blobId": digest,
    }
    if len(content) >= SMALL:
        # Git has a pointer to a large file: its digest says nothing of the content.
        sha256 = hashlib.sha256(content).hexdigest()
        entry |= {
            "blobId": 40 * "0",
            "lfs": {"sha256": sha256, "size": len(content), "pointerSize": 134},
        }
    return entry


@contextmanager
def reached(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """A hub that this process takes for the one."""
    with serving(folder) as hub:
        for name, value in {
            "ENDPOINT": hub.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        yield hub


@contextmanager
def reached_alone(monkeypatch: pytest.MonkeyPatch, folder: Path, place: Path) -> Iterator[Hub]:
    """The same, with caches of its own in `place`."""
    monkeypatch.setenv("QSJAX_CACHE", str(place / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "theirs"))
    with reached(monkeypatch, folder) as hub:
        yield hub


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub in a thread."""
    with Hub(folder) as hub:
        threading.Thread(
            target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        try:
            yield hub
        finally:
            hub.shutdown()


def download(address: Address, *, offline: bool = False) -> tuple[Path, str]:
    """All that the hub has at an address, and its commit."""
    listing = look(address, offline=offline)
    require_network(listing, listing.files, offline=offline)
    for name in listing.files:
        fetch(listing, name)
    return listing.path, listing.commit


CHILD = """
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1 << 14
from qsjax.hub import Address, fetch, look, pieces
pieces.PIECE = 1 << 20
listing = look(Address("owner/model"))
for name in listing.files:
    fetch(listing, name)
print(listing.path)
"""


def child(hub: Hub, theirs: Path) -> subprocess.Popen[str]:
    """A process that downloads all, and prints where it is; `theirs` is the place of the hub's own cache."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(theirs),
    }
    return subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
