"""Requests of strangers to `qsjax serve`: 4xx with one sentence, and nothing is made."""

import json

import pytest
from videos import SMALL

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=b"
HUGE, DEEP = "9" * 4000, b'{"prompt": ' + b"[" * 3000 + b"]" * 3000 + b"}"


def part(name, text, extra=""):
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n{text}\r\n'.encode()


BODIES = {
    "nothing": (JSON, b""),
    "a list": (JSON, b"[]"),
    "null": (JSON, b"null"),
    "half": (JSON, b'{"prompt": "a"'),
    "no UTF-8": (JSON, b'{"prompt": "\xff"}'),
    "twice": (JSON, b'{"prompt": "a", "prompt": "b"}'),
    "NaN": (JSON, b'{"prompt": "a", "guidance_scale": NaN}'),
    "infinity": (JSON, b'{"prompt": "a", "guidance_scale": 1e999}'),
    "digits": (JSON, f'{{"prompt": "a", "seed": {HUGE}}}'.encode()),
    "deep": (JSON, DEEP),
    "large": (JSON, b'{"prompt": "' + b"x" * (1 << 20) + b'"}'),
    "many keys": (JSON, json.dumps({f"k{n}": n for n in range(50_000)}).encode()),
    "surrogate": (JSON, b'{"prompt": "\\ud800"}'),
    "long": (JSON, json.dumps({"prompt": "x" * 70_000}).encode()),
    "no kind": ("", b'{"prompt": "a"}'),
    "other kind": ("text/plain", b'{"prompt": "a"}'),
    "no boundary": ("multipart/form-data", part("prompt", "a")),
    "other boundary": ("multipart/form-data; boundary=c", part("prompt", "a")),
    "no end": (MULTIPART, part("prompt", "a")[:40]),
    "a file": (MULTIPART, part("prompt", "a") + part("input_reference", "x", '; filename="../a.png"') + b"--b--\r\n"),
    "twice in a form": (MULTIPART, part("prompt", "a") + part("prompt", "b") + b"--b--\r\n"),
    "many parts": (MULTIPART, b"".join(part(f"k{n}", "") for n in range(500)) + b"--b--\r\n"),
    "many fields": (FORM, b"&".join(b"k%d=1" % n for n in range(5000))),
    "word for a number": (FORM, b"prompt=a&num_frames=many"),
    "arabic digits": (FORM, b"prompt=a&num_frames=%D9%A5"),
    "spelled infinity": (FORM, b"prompt=a&guidance_scale=inf"),
}  # fmt: skip
FIELDS = {
    "prompt": ("", "  ", None, 3, ["a"], {"a": 1}, True, "a\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace") * 70_000),
    "size": ("", "24", "24x", "x16", "-24x16", "24x16x5", "9999999x9999999", "24X16", "2e1x16", "٢٤x16", 24, "24x16\n", "25x16", "0x0"),
    "seconds": ("0", "-1", "4.5", "1e9", 4, "99999", ""),
    "num_frames": (0, -1, 6, 1.5, "5", True, 1 << 62, 1 << 70, 10**9 + 1, [5]),
    "num_inference_steps": (0, -1, 9, 10_001, 1.5, "4", False),
    "fps": (0, -5, 1001, 1.5, "24"),
    "guidance_scale": (-1, 1e300, "6", [6], True),
    "true_cfg_scale": (0, 0.5, 1e9, "2"),
    "flow_shift": (0, -1, 1e300, "7"),
    "negative_prompt": ("blue", 3, ["a"]),
    "seed": (-1, 1 << 64, 1.5, "1", True),
    "recipe": ("nothing", "../../etc/passwd", "/etc/passwd.toml", "quantsparse-w4a8-d15", 3, "x" * 100_000),
    "model": ("another", "../tiny", 3),
    "input_reference": ("x", {"a": 1}), "lora": ({"path": "/etc/passwd"},), "extra_params": ({"a": 1},), "video_params": ({"width": 1},),
    "prompts": ("a",), "__class__": ("a",), "out": ("../../x.mp4",), "\x1b[31m": ("a",),
}  # fmt: skip
PATHS = (
    *("..", "../..", "..%2f..%2fetc%2fpasswd", "%2e%2e", "%00", "a" * 5000, "video-1", "x.mp4", "sync", "'", "\u202e", "%ff"),
    *("video-20260101-000000-0123456789abcdef", "VIDEO-20260101-000000-0123456789ABCDEF", "video-20260101-000000-0123456789abcdef%0a"),
    *("video-20260101-000000-0123456789abcdef.mp4", "video-20260101-000000-0123456789abcdef.full-precision", ".qsjax"),
)  # fmt: skip


def one_sentence(answer):
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:300])
    message = answer.json()["error"]["message"]
    assert 0 < len(message) < 2000
    assert message.isprintable()
    assert "Traceback" not in message


@pytest.fixture
def unused(client, server_queue, maker):
    """The client; nothing was asked of the queue, and nothing written."""
    yield client
    assert server_queue.tasks == []
    assert list(maker.folder.place.iterdir()) == []


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/videos/sync"])
@pytest.mark.parametrize("name", BODIES)
def test_bodies(unused, name, path):
    kind, body = BODIES[name]
    one_sentence(unused.post(path, content=body, headers={"Content-Type": kind} if kind else {}))


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in FIELDS.items() for value in values]
)
def test_fields(unused, name, value):
    body = {**SMALL, name: value}
    if name == "seconds":
        del body["num_frames"]
    one_sentence(unused.post("/v1/videos", json=body))


@pytest.mark.parametrize("path", PATHS)
def test_paths(unused, path):
    for method in ("GET", "DELETE"):
        if path in ("..", "../..", "%2e%2e") and method == "GET":
            continue  # clients resolve it: the list of all
        one_sentence(unused.request(method, f"/v1/videos/{path}"))
    one_sentence(unused.get(f"/v1/videos/{path}/content"))


@pytest.mark.parametrize("length", ["-1", "1e9", "9" * 30, "x", str(1 << 40)])
def test_announced_lengths(unused, length):
    headers = {"Content-Type": JSON, "Content-Length": length}
    one_sentence(unused.post("/v1/videos", content=b"{}", headers=headers))


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=٣", "order=up", "after=../x", f"limit={HUGE}"])  # fmt: skip
def test_queries(unused, query):
    one_sentence(unused.get(f"/v1/videos?{query}"))


@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE", "OPTIONS"])
def test_methods(unused, method):
    one_sentence(unused.request(method, "/v1/videos"))
