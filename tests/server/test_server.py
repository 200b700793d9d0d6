"""`qsjax serve`: endpoints and fields as peers have them, order, cancellation, keys, and clients that are slow or strange."""

import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from starlette.testclient import TestClient
from videos import BASE, SMALL

from qsjax.cli import main
from qsjax.provenance import read_provenance
from qsjax.server import asked, launch
from qsjax.server.app import make_app
from qsjax.serving import Outcome, TaskProgress, TaskQueue


def made(client, name):
    """The record of a video when nothing more happens to it."""
    end = time.monotonic() + 120
    while (record := client.get(f"/v1/videos/{name}").json())["status"] in ("queued", "in_progress"):  # fmt: skip
        assert time.monotonic() < end
        threading.Event().wait(0.02)
    return record


def refused(answer, status, said=""):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code"}
    assert error["code"] == status
    assert said in error["message"]
    assert "\n" not in error["message"]
    return error["message"]


def test_ten_requests_in_their_order_and_none_is_lost(client, server_queue, maker):
    names = []
    for number in range(10):
        answer = client.post("/v1/videos", json={**SMALL, "seed": number})
        record = answer.json()
        assert answer.status_code == 200, record
        assert (record["object"], record["model"], record["size"]) == ("video", "tiny", "24x16")
        assert record["status"] in ("queued", "in_progress", "completed")
        names.append(record["id"])
    records = [made(client, name) for name in names]
    assert [record["status"] for record in records] == ["completed"] * 10
    assert [record["seed"] for record in records] == list(range(10))
    assert all(record["progress"] == 100 and record["error"] is None for record in records)
    tasks = server_queue.tasks
    assert [task.id for task in tasks] == names
    assert all(a.finished <= b.started for a, b in itertools.pairwise(tasks))
    listed = client.get("/v1/videos", params={"limit": 4}).json()
    assert [one["id"] for one in listed["data"]] == names[:-5:-1]
    assert listed["has_more"]
    assert (listed["first_id"], listed["last_id"]) == (names[-1], names[-4])
    rest = client.get("/v1/videos", params={"order": "asc", "after": names[7]}).json()
    assert [one["id"] for one in rest["data"]] == names[8:]
    content = client.get(f"/v1/videos/{names[3]}/content")
    assert content.headers["content-type"] == "video/mp4"
    assert content.content == maker.folder.file(names[3]).read_bytes()
    assert client.get(f"/v1/videos/{names[3]}/content", headers={"Range": "bytes=4-7"}).content == b"ftyp"  # fmt: skip
    assert read_provenance(maker.folder.file(names[3])).seed == 3
    answer = client.delete(f"/v1/videos/{names[3]}")
    assert answer.json() == {"id": names[3], "object": "video.deleted", "deleted": True}
    refused(client.get(f"/v1/videos/{names[3]}"), 404, "no such video")
    refused(client.delete(f"/v1/videos/{names[3]}"), 404, "no such video")
    # Another process finds what was finished.
    other = TaskQueue(maker, limit=1)
    again = TestClient(make_app(maker, other, model="tiny", key=None), BASE)
    found = again.get(f"/v1/videos/{names[4]}").json()
    assert (found["status"], found["seed"], found["prompt"]) == ("completed", 4, SMALL["prompt"])
    assert again.get(f"/v1/videos/{names[4]}/content").content[4:8] == b"ftyp"
    assert len(again.get("/v1/videos").json()["data"]) == 9
    other.close()


@pytest.mark.parametrize("kind", ["json", "form", "multipart"])
def test_the_video_itself_at_once(client, kind):
    """JSON, a form and curl's `-F` say the same."""
    body = {**SMALL, "seed": 5, "guidance_scale": 6.5, "flow_shift": 7, "user": "me", "model": "tiny"}  # fmt: skip
    texts = {name: str(value) for name, value in body.items()}
    arguments = {
        "json": {"json": body},
        "form": {"data": texts},
        "multipart": {"files": {name: (None, text) for name, text in texts.items()}},
    }[kind]
    answer = client.post("/v1/videos/sync", **arguments)
    assert answer.status_code == 200, answer.text
    assert answer.content[4:8] == b"ftyp"
    record = client.get(f"/v1/videos/{answer.headers['x-video-id']}").json()
    assert (record["seed"], record["num_frames"], record["num_inference_steps"]) == (5, 5, 4)
    assert record["stage_durations"]["denoise"] > 0


def test_seconds_become_frames(client, maker):
    video = asked.CreateVideo(prompt="a", seconds="4").request(fps=24, temporal=4)
    assert video.frames == 97
    assert asked.CreateVideo(prompt="a", seconds="1", fps=5).request(fps=24, temporal=4).frames == 5
    assert client.get("/v1/models").json()["data"] == [{"id": "tiny", "object": "model"}]


class Held:
    """Makes nothing until it is let go."""

    def __init__(self):
        self.go = threading.Event()

    def __call__(self, task, report):
        while not self.go.wait(0.01):
            report(TaskProgress(stage="denoising", step=1, steps=2))
        task.path.write_bytes(b"....ftyp")
        return Outcome(kinds=(), skipped=0, seconds={"all": 1.0})


@pytest.fixture
def held(maker):
    """A client of a server that holds at most two videos and makes none."""
    work = Held()
    queue = TaskQueue(work, limit=2)
    yield TestClient(make_app(maker, queue, model="tiny", key=None), BASE), work
    work.go.set()
    queue.close()


def test_a_full_queue_and_cancellation(held, maker):
    client, work = held
    first, second = (client.post("/v1/videos", json=SMALL).json()["id"] for _ in range(2))
    answer = client.post("/v1/videos", json=SMALL)
    refused(answer, 429, "2 videos are being made; wait for it or cancel it")
    assert answer.headers["retry-after"] == "10"
    refused(client.get(f"/v1/videos/{second}/content"), 409, "is queued; ask again")
    assert client.get("/ready").json() == {"status": "ready", "waiting": 2}
    for name in (second, first):  # one that waits, and one that runs
        assert client.delete(f"/v1/videos/{name}").json()["deleted"]
        refused(client.get(f"/v1/videos/{name}"), 404)
    assert client.get("/ready").json()["waiting"] == 0
    work.go.set()
    third = client.post("/v1/videos/sync", json=SMALL)
    assert third.content == b"....ftyp"
    assert [path.stem for path in maker.folder.place.iterdir()] == [third.headers["x-video-id"]]


def test_a_failure_is_told(maker):
    def fail(task, report):
        raise MemoryError("no room")

    queue = TaskQueue(fail, limit=2)
    client = TestClient(make_app(maker, queue, model="tiny", key=None), BASE)
    refused(client.post("/v1/videos/sync", json=SMALL), 500, "the device refused (no room)")
    name = client.post("/v1/videos", json=SMALL).json()["id"]
    record = made(client, name)
    assert (record["status"], record["error"]["code"]) == ("failed", "failed")
    assert record["error"]["message"].startswith("the device refused")
    refused(client.get(f"/v1/videos/{name}/content"), 404, "there is no video: the device refused")
    queue.close()


def test_not_ready_before_the_model_is_loaded(maker):
    loading = threading.Event()
    queue = TaskQueue(maker, limit=2, warm=lambda: loading.wait(60) and None)
    client = TestClient(make_app(maker, queue, model="tiny", key=None), BASE)
    assert client.get("/health").json() == {"status": "ok"}
    refused(client.get("/ready"), 503, "the model is being loaded")
    assert client.post("/v1/videos", json=SMALL).json()["status"] == "queued"
    loading.set()
    queue.close()


def test_a_key(maker, server_queue):
    key = "0123456789abcdef"
    client = TestClient(
        make_app(maker, server_queue, model="tiny", key=key), "http://videos.example"
    )
    for headers in ({}, {"Authorization": key}, {"Authorization": f"Bearer {key}x"}, {"Authorization": b"Bearer \xe9"}):  # fmt: skip
        for path in ("/v1/videos", "/v1/models", "/nothing"):
            refused(client.get(path, headers=headers), 401, "send it as Authorization: Bearer KEY")
    assert client.get("/v1/videos", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert [client.get(path).status_code for path in ("/health", "/ready")] == [200, 200]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example:80"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
    ],
)
def test_without_a_key_only_this_machine(client, headers, status):
    assert client.get("/v1/videos", headers=headers).status_code == status


@pytest.fixture
def listening(maker, server_queue, monkeypatch):
    """A port of a real server, whose patience is short."""
    monkeypatch.setattr(asked, "SLOWEST", 0.3)
    monkeypatch.setattr(launch, "SLOWEST", 0.3)
    server = launch.make_server(make_app(maker, server_queue, model="tiny", key=None))
    with launch.bound("127.0.0.1", 0) as sock:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        yield sock.getsockname()[1]
        server.should_exit = True
        thread.join(30)


def said_to(port, *parts):
    """All that the server answers to these bytes until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
        for part in parts:
            one.sendall(part)
        answer = b""
        while found := one.recv(4096):
            answer += found
    return answer


def test_slow_clients_are_left_and_others_served(listening):
    head = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert said_to(listening, b"") == b""
    assert said_to(listening, head) == b""
    answer = said_to(listening, head + b"Content-Length: 100\r\n\r\n", b"{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"took more than 0.3 seconds" in answer
    answer = said_to(listening, head + b"Content-Length: 10000000\r\n\r\n", b"{")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert said_to(listening, head + b"X: " + b"x" * 70_000).startswith((b"", b"HTTP/1.1 400 "))
    for nonsense in (b"\0\1\2\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET  \r\n\r\n"):
        assert said_to(listening, nonsense).startswith(b"HTTP/1.1 400 ")
    address = f"http://127.0.0.1:{listening}"
    assert httpx.get(f"{address}/health", trust_env=False).json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "others could use this server"),
        (["--api-key-file", "{short}"], "a key is one word of 16 characters or more"),
        (["--api-key-file", "{nowhere}"], "cannot be opened"),
        (["--host", "999.1.1.1", "--api-key-file", "{long}"], "cannot be listened at"),
        (["--out", "{short}"], "is no folder"),
        (["--model", "{nowhere}"], "nowhere"),
    ],
)
def test_what_cannot_be_served(words, said, tmp_path, capsys, tiny_checkpoint):
    (tmp_path / "short").write_text("short")
    (tmp_path / "long").write_text("0123456789abcdef\n")
    places = {name: str(tmp_path / name) for name in ("short", "long", "nowhere")}
    out = ["--out", str(tmp_path / "videos"), "--port", "0", "--model", str(tiny_checkpoint)]
    assert main(["serve", *out, *(word.format(**places) for word in words)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.whole
def test_finished_videos_survive_a_kill(tmp_path):
    """kill -9 in the second of three; what was finished is there for the next process, and nothing else."""
    options = ["--port", "0", "--json", "--out", str(tmp_path / "v"), "--max-steps", "2000"]
    # A shell's background ignores interrupts, and children inherit that.
    heeds = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from qsjax.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", heeds, "serve", *options]

    def start():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with process.stdout as said:
            return process, json.loads(said.readline())["address"]

    process, address = start()
    with httpx.Client(base_url=address, trust_env=False, timeout=300) as client:
        first = client.post("/v1/videos/sync", json=SMALL).headers["x-video-id"]
        long = {**SMALL, "num_inference_steps": 2000}
        others = [client.post("/v1/videos", json=long).json()["id"] for _ in range(2)]
    process.kill()
    process.wait()
    process, address = start()
    with httpx.Client(base_url=address, trust_env=False, timeout=300) as client:
        assert [one["id"] for one in client.get("/v1/videos").json()["data"]] == [first]
        assert client.get(f"/v1/videos/{first}/content").content[4:8] == b"ftyp"
        assert [client.get(f"/v1/videos/{name}").status_code for name in others] == [404, 404]
        assert client.post("/v1/videos/sync", json=SMALL).status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
