"""A hub that lies, sends too much, too little or too slowly; and records of it that are damaged."""

import gzip
import json
import random
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hub.hub_server import COMMIT, REPO, Hub, child, download, reached, serving
from huggingface_hub import constants

from convert.bundled import tiny_model_directory
from convert.conversion import convert
from qsjax.cache import cache_directory
from qsjax.errors import CheckpointError, InputError, QsjaxError
from qsjax.hub import Address, asking, pieces

pytestmark = pytest.mark.hostile

ADDRESS = Address(REPO)
WEIGHTS = "w.safetensors"
MAIN = f"/api/models/{REPO}/revision/main"
SIZE = 200_000
Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(random.Random(0).randbytes(SIZE))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, without waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(asking, "pause", seconds.append)
    return seconds


@pytest.fixture
def hub(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> Iterator[Hub]:
    monkeypatch.setenv("QSJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "theirs"))
    with reached(monkeypatch, model) as server:
        yield server


def answers(content: bytes, status: int = 200, **headers: object) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in ({"Content_Length": len(content)} | headers).items():
            if value is not None:
                request.send_header(name.replace("_", "-"), str(value))
        request.end_headers()
        request.wfile.write(content)

    return answer


def refused(error: QsjaxError) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 700


def listing(**change: object) -> bytes:
    entry = {"rfilename": WEIGHTS, "size": SIZE, "blobId": 40 * "0", "lfs": {"sha256": 64 * "0"}}
    return json.dumps({"sha": COMMIT, "siblings": [entry | change]}).encode()


LISTINGS = {
    "empty": b"",
    "a page": b"<html><body>Welcome to our network, please log in</body></html>",
    "no UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "nothing": b"null",
    "deep": b'{"a":' * 50_000,
    "NaN": b'{"sha": NaN}',
    "no siblings": json.dumps({"sha": COMMIT}).encode(),
    "siblings of text": json.dumps({"sha": COMMIT, "siblings": "x"}).encode(),
    "siblings by name": json.dumps({"sha": COMMIT, "siblings": {"a": 1}}).encode(),
    "siblings that are numbers": json.dumps({"sha": COMMIT, "siblings": [1, 2]}).encode(),
    "siblings that are null": json.dumps({"sha": COMMIT, "siblings": [None]}).encode(),
    "no files": json.dumps({"sha": COMMIT, "siblings": []}).encode(),
    "10,001 files": json.dumps({"sha": COMMIT, "siblings": [{"rfilename": "a"}] * 10_001}).encode(),
    "no commit": json.dumps({"siblings": [{"rfilename": WEIGHTS, "size": 1, "blobId": 40 * "0"}]}).encode(),
    "a commit that is a number": json.dumps({"sha": 3, "siblings": []}).encode(),
    "17 MB": b" " * (17 << 20),
    "a name that is a number": listing(rfilename=3),
    "no name": listing(rfilename=None),
    "a name of a megabyte": listing(rfilename="a" * (1 << 20) + ".json"),
    "a name of 300": listing(rfilename="a" * 300 + ".json"),
    "a deep name": listing(rfilename="a/" * 500 + "b.json"),
    "escapes": listing(rfilename="\x1b[31m.json"),
    "a line": listing(rfilename="a\nb.json"),
    "a zero": listing(rfilename="a\0.json"),
    "a parent": listing(rfilename="../a.json"),
    "an absolute path": listing(rfilename="/etc/a.json"),
    "a drive": listing(rfilename="C:a.json"),
    "a backslash": listing(rfilename="a\\b.json"),
    "hidden": listing(rfilename="a/.ssh/b.json"),
    "a negative size": listing(size=-1),
    "a size of text": listing(size="8"),
    "a size of true": listing(size=True),
    "a size of a float": listing(size=8.0),
    "no size": listing(size=None),
    "11 TB": listing(size=11 * 10**12),
    "2^70": listing(size=2**70),
    "no checksum": listing(lfs=None, blobId=None),
    "a short checksum": listing(lfs={"sha256": "00"}),
    "a checksum that is a list": listing(lfs={"sha256": [1]}),
    "a checksum that is a number": listing(lfs=None, blobId=40),
    "a file that is a folder": json.dumps({"sha": COMMIT, "siblings": [
        {"rfilename": name, "size": 1, "blobId": 40 * "0"} for name in ("a.json", "a.json/b.json", WEIGHTS)
    ]}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTINGS)
def test_a_listing_that_is_none(hub: Hub, name: str) -> None:
    hub.other[MAIN] = answers(LISTINGS[name])
    with pytest.raises(QsjaxError) as caught:
        download(ADDRESS)
    refused(caught.value)
    assert "cannot be reached" not in str(caught.value)
    assert not [path for path in cache_directory().rglob("*") if path.is_file()]


def test_a_token_stays_with_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may be elsewhere; who keeps them is not told it."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    heard: list[tuple[str, str | None]] = []

    def elsewhere(request: BaseHTTPRequestHandler) -> None:
        heard.append(("there", request.headers.get("Authorization")))
        answers(b"", 404)(request)

    with serving(hub.folder) as other:
        other.other[WEIGHTS] = elsewhere

        def sends_on(request: BaseHTTPRequestHandler) -> None:
            heard.append(("here", request.headers.get("Authorization")))
            answers(b"", 302, Location=f"{other.address}/{WEIGHTS}")(request)

        hub.other[WEIGHTS] = sends_on
        with pytest.raises(InputError, match="the hub answers 404"):
            download(ADDRESS)
    assert set(heard) == {("here", "Bearer hf_secret"), ("there", None)}


@pytest.mark.parametrize("token", ["h\u00fcgging", "hf_\u2028x", "hf_\x7f", "\U0001f917"])
def test_a_token_that_is_none(hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """It cannot be sent, and is not shown."""
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(
        InputError, match="the token for the hub has characters that no token"
    ) as caught:
        download(ADDRESS)
    refused(caught.value)
    assert token not in str(caught.value)
    assert not hub.asked


@pytest.mark.parametrize(
    "encoding", ["gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip", "x" * 500]
)
@pytest.mark.parametrize("end", [MAIN, WEIGHTS])
def test_a_compressed_body_is_not_read(hub: Hub, end: str, encoding: str) -> None:
    content = gzip.compress(bytes(1 << 20)) if encoding == "gzip" else zlib.compress(bytes(1 << 20))
    hub.other[end] = answers(content, Content_Encoding=encoding)
    with pytest.raises(InputError, match="compressed") as caught:
        download(ADDRESS)
    refused(caught.value)


@pytest.mark.parametrize("length", ["none", "chunked", "right", "as listed"])
def test_more_than_is_listed(hub: Hub, length: str) -> None:
    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if length in ("right", "as listed"):
            request.send_header("Content-Length", str(SIZE if length == "as listed" else 1 << 40))
        if length == "chunked":
            request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        block = bytes(1 << 16)
        for _ in range(1000):
            request.wfile.write(b"10000\r\n" + block + b"\r\n" if length == "chunked" else block)

    hub.other[WEIGHTS] = endless
    with pytest.raises(QsjaxError) as caught:
        download(ADDRESS)
    refused(caught.value)
    assert ("arrives damaged" if length == "as listed" else "sends more than") in str(caught.value)
    assert sum(path.stat().st_size for path in cache_directory().rglob("*")) < 2 * SIZE


@pytest.mark.parametrize("where", ["in the head", "in the body", "in chunks"])
def test_a_server_that_trickles(hub: Hub, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(asking, "PERIOD", 0.3)
    stopped = threading.Event()

    def trickle(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        if where == "in chunks":
            request.wfile.write(b"Transfer-Encoding: chunked\r\n\r\n1;")
        elif where == "in the body":
            request.wfile.write(b"Content-Length: %d\r\n\r\n" % SIZE)
        for _ in range(5000):
            request.wfile.write(b"a")
            if stopped.wait(0.01):
                return

    hub.other[WEIGHTS] = trickle
    with pytest.raises(InputError, match="sends less than") as caught:
        download(ADDRESS)
    stopped.set()
    refused(caught.value)


@pytest.mark.parametrize("end", [MAIN, WEIGHTS])
def test_a_server_that_says_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(asking, "TIMEOUT", 0.2)
    stopped = threading.Event()
    hub.other[end] = lambda request: (stopped.wait(20), None)[1]
    with pytest.raises(InputError, match="cannot be reached") as caught:
        download(ADDRESS)
    stopped.set()
    refused(caught.value)


@pytest.mark.parametrize("asked", ["3600", "61", "999999999999999999999999"])
def test_a_server_that_asks_for_an_hour(hub: Hub, waits: list[float], asked: str) -> None:
    hub.other[WEIGHTS] = answers(b"", 429, Retry_After=asked)
    with pytest.raises(InputError, match="asks to wait") as caught:
        download(ADDRESS)
    refused(caught.value)
    assert waits == []


@pytest.mark.parametrize("asked", ["30", "0", "-5", "Wed, 21 Oct 2015 07:28:00 GMT", "nan", None])
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_some_times(
    hub: Hub, waits: list[float], status: int, asked: str | None
) -> None:
    hub.other[WEIGHTS] = answers(b"", status, Retry_After=asked)
    with pytest.raises(InputError, match=f"the hub answers {status}; try again later"):
        download(ADDRESS)
    assert len(waits) == asking.TRIES - 1
    assert sum(waits) <= 120


def test_a_busy_server_that_recovers(hub: Hub, model: Path, waits: list[float]) -> None:
    def busy(request: BaseHTTPRequestHandler) -> None:
        del hub.other[WEIGHTS]
        answers(b"", 503, Retry_After=7)(request)

    hub.other[WEIGHTS] = busy
    folder, _ = download(ADDRESS)
    assert waits == [7.0]
    assert (folder / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()


def test_a_connection_that_breaks_goes_on_where_it_broke(hub: Hub, model: Path) -> None:
    whole, left = (model / WEIGHTS).read_bytes(), [70_000, 140_000]

    def breaks(request: BaseHTTPRequestHandler) -> None:
        first = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        last = left.pop(0)
        if not left:
            del hub.other[WEIGHTS]
        answers(
            whole[first:last], 206 if first else 200, Content_Length=SIZE - first,
            Content_Range=f"bytes {first}-{SIZE - 1}/{SIZE}" if first else None,
        )(request)  # fmt: skip

    hub.other[WEIGHTS] = breaks
    folder, _ = download(ADDRESS)
    assert (folder / WEIGHTS).read_bytes() == whole
    assert hub.asked[-1] == (WEIGHTS, 140_000)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answers(b"x" * 100, Content_Length=SIZE), "cannot be reached"),
        (answers(b"x" * 100), "ends the file early"),
        (answers(b""), "ends the file early"),
        (answers(b"x" * SIZE), "arrives damaged"),
        (answers(b"", 301, Location="/"), "no model of the hub"),
        (answers(b"", 302, Location=f"/{REPO}/resolve/{COMMIT}/{WEIGHTS}"), "redirect"),
        (answers(b"", 302, Location="file:///etc/passwd"), "cannot be reached"),
        (answers(b"", 416), "the hub answers 416"),
        (answers(b"y" * (1 << 20), 404), "the hub answers 404"),
        (answers(b"{}", 403, X_Error_Code="GatedRepo", X_Error_Message="\x1b[31m" * 100), "licence"),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_file(hub: Hub, answer: Answer, reason: str) -> None:
    hub.other[WEIGHTS] = answer
    with pytest.raises(QsjaxError, match=reason) as caught:
        download(ADDRESS)
    refused(caught.value)
    assert not list(cache_directory().rglob(WEIGHTS))


def test_another_part_than_was_asked_for(hub: Hub, model: Path) -> None:
    part = cache_directory() / "hub" / "owner--model" / COMMIT / f"{WEIGHTS}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((model / WEIGHTS).read_bytes()[:1000])
    hub.other[WEIGHTS] = answers(bytes(100), 206, Content_Range=f"bytes 0-99/{SIZE}")
    with pytest.raises(InputError, match="another part of the file"):
        download(ADDRESS)
    assert part.stat().st_size == 1000


def test_a_server_that_knows_no_ranges(hub: Hub, model: Path) -> None:
    part = cache_directory() / "hub" / "owner--model" / COMMIT / f"{WEIGHTS}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((model / WEIGHTS).read_bytes()[:1000])
    hub.other[WEIGHTS] = answers((model / WEIGHTS).read_bytes())
    folder, _ = download(ADDRESS)
    assert (folder / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()


def part_with_range(content: Callable[[int, int], bytes]) -> Answer:
    """Answers a request for `first-last` with what `content` makes of it, under the right header."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        first, last = request.headers["Range"].removeprefix("bytes=").split("-")
        begin, end = int(first), int(last or SIZE - 1)
        answers(content(begin, end + 1), 206, Content_Range=f"bytes {begin}-{end}/{SIZE}")(request)

    return answer


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda begin, end: bytes(end - begin + 1), "sends more than"),
        (lambda begin, end: bytes(1 << 20), "sends more than"),
        (lambda begin, end: b"", "ends the file early"),
        (lambda begin, end: b"x", "ends the file early"),
        (lambda begin, end: bytes(end - begin), "arrives damaged"),
    ],
)  # fmt: skip
def test_pieces_that_are_none(
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    content: Callable[[int, int], bytes],
    reason: str,
) -> None:
    monkeypatch.setattr(pieces, "PIECE", 1 << 15)
    hub.other[WEIGHTS] = part_with_range(content)
    with pytest.raises(QsjaxError, match=reason) as caught:
        download(ADDRESS)
    refused(caught.value)
    assert sum(path.stat().st_size for path in cache_directory().rglob("*")) < 2 * SIZE
    assert not list(cache_directory().rglob(WEIGHTS))


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


HEADERS = {
    "one of a terabyte": (1 << 40).to_bytes(8, "little"),
    "one beyond the file": (SIZE - 7).to_bytes(8, "little"),
    "none": bytes(8),
    "no JSON": header(b"{" * 100),
    "one of other tensors": header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "one of a huge shape": header(b'{"a":{"dtype":"F32","shape":[99999999999999999],"data_offsets":[0,4]}}'),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_are_none(hub: Hub, model: Path, tmp_path: Path, name: str) -> None:
    """Found before the rest of the file comes."""
    content = HEADERS[name] + (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(content[:SIZE])
    with pytest.raises(QsjaxError) as caught:
        convert(f"hf://{REPO}/{WEIGHTS}", tmp_path / "out", progress=False)
    refused(caught.value)
    assert hub.sent < SIZE
    assert not list(tmp_path.glob("out*"))


RECORDS = {
    **{name: LISTINGS[name] for name in ("empty", "a list", "nothing", "deep", "NaN", "no UTF-8", "17 MB")},
    "nothing in it": b"{}",
    "files that are a list": json.dumps({"commit": COMMIT, "files": []}).encode(),
    "a file that is a number": json.dumps({"commit": COMMIT, "files": {"a.json": 3}}).encode(),
    "a file without anything": json.dumps({"commit": COMMIT, "files": {"a.json": {}}}).encode(),
    "an unknown field": json.dumps({"commit": COMMIT, "files": {"a.json": {"size": 1, "x": 2}}}).encode(),
    "a size of text": json.dumps({"commit": COMMIT, "files": {"a.json": {"size": "1", "sha256": 64 * "0"}}}).encode(),
    "a parent": json.dumps({"commit": COMMIT, "files": {"../a.json": {"size": 1, "sha256": 64 * "0"}}}).encode(),
    "a commit that is a path": json.dumps({"commit": "../../x", "files": {}}).encode(),
    "a commit that is a list": json.dumps({"commit": [], "files": {}}).encode(),
    "another address": json.dumps({"address": "hf://x/y@main", "commit": COMMIT, "files": {}}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_is_none(hub: Hub, name: str) -> None:
    folder, _ = download(ADDRESS)
    (record,) = folder.parent.glob("*@main.json")
    record.write_bytes(RECORDS[name])
    with pytest.raises(QsjaxError) as caught:
        download(ADDRESS, offline=True)
    refused(caught.value)
    download(ADDRESS)  # with a network it is written anew
    assert download(ADDRESS, offline=True)[0] == folder


def test_a_small_file_that_was_changed_is_fetched_again(hub: Hub, model: Path) -> None:
    folder, _ = download(ADDRESS)
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match="1 of 2 files are not here"):
        download(ADDRESS, offline=True)
    download(ADDRESS)
    assert (folder / "config.json").read_text() == "{}"


def test_a_large_file_that_was_changed_is_found_while_it_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsjax.hub.folder._HASHED", 1 << 20)
    monkeypatch.setenv("QSJAX_CACHE", str(tmp_path / "cache"))
    with reached(monkeypatch, tiny_model_directory()):
        folder, _ = download(ADDRESS)
    (weights,) = (folder / "transformer").glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not what was downloaded"):
        convert(f"hf://{REPO}", tmp_path / "out", offline=True, progress=False)
    assert not (tmp_path / "out").exists()


def _download_together(hub: Hub, model: Path, count: int) -> None:
    """So many processes that start at once: one fetches, the others wait and find it."""
    processes = [child(hub, cache_directory() / "theirs") for _ in range(count)]
    folders = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * count
    (folder,) = folders
    assert (Path(folder) / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()
    assert hub.asked.count((WEIGHTS, 0)) == 1
    assert not list(cache_directory().rglob("*.part*"))


def test_processes_that_download_the_same(hub: Hub, model: Path) -> None:
    (model / WEIGHTS).write_bytes(random.Random(0).randbytes(8_000_000))
    _download_together(hub, model, 3)


@pytest.mark.slow
def test_a_hundred_pairs_of_downloads(hub: Hub, model: Path) -> None:
    (model / WEIGHTS).write_bytes(random.Random(0).randbytes(8_000_000))
    for _ in range(100):
        _download_together(hub, model, 2)
        shutil.rmtree(cache_directory() / "hub")
        hub.asked.clear()
