"""Files that say of themselves how they were made: damaged boxes, hostile JSON, values that cannot be."""

import json
import os

import numpy as np
import pytest

from qsjax.cli import main
from qsjax.errors import InputError
from qsjax.provenance import Provenance, read_provenance
from qsjax.settings import Settings
from qsjax.untrusted.mp4 import read_comment
from qsjax.video import write_video

MADE = json.loads(
    Provenance(
        prompt="a red circle", seed=0, settings=Settings(), checkpoint="0" * 64, dtype="float32"
    ).to_json()
)


def box(kind, content, size=None):
    return (len(content) + 8 if size is None else size).to_bytes(4, "big") + kind + content


def mp4(comment, *, size=None, before=b""):
    """The boxes around a comment, and nothing to be decoded."""
    data = box(b"data", bytes(8) + comment, size)
    listed = box(b"ilst", box(b"\xa9cmt", data))
    moov = box(b"moov", box(b"udta", box(b"meta", bytes(4) + listed)))
    return box(b"ftyp", b"isom") + before + moov


COMMENTS = {
    "not JSON": b"{",
    "a list": b"[]",
    "old": b"qsjax tiny, seed 0",
    "not UTF-8": b'{"\xff": 1}',
    "another program's": b'{"workflow": {}}',
    "twice": b'{"format": "qsjax video", "format": 1}',
    "deep": b'{"a":' * 5000,
    "version": json.dumps(MADE | {"format_version": 2}).encode(),
    "no version": json.dumps(MADE | {"format_version": "1"}).encode(),
    "unknown key": json.dumps(MADE | {"sed": 3}).encode(),
    "no prompt": json.dumps({k: v for k, v in MADE.items() if k != "prompt"}).encode(),
    "long prompt": json.dumps(MADE | {"prompt": "x" * (1 << 17)}).encode(),
    "prompt": json.dumps(MADE | {"prompt": ["x"]}).encode(),
    "seed": json.dumps(MADE | {"seed": -1}).encode(),
    "large seed": b'{"format": "qsjax video", "format_version": 1, "seed": 1e400}',
    "digest": json.dumps(MADE | {"checkpoint": "../../etc"}).encode(),
    "dtype": json.dumps(MADE | {"dtype": "int4"}).encode(),
    "storage": json.dumps(MADE | {"text_storage": "int2"}).encode(),
    "devices": json.dumps(MADE | {"devices": 10**9}).encode(),
    "kernels": json.dumps(MADE | {"kernels": {"attention": 3}}).encode(),
    "versions": json.dumps(MADE | {"versions": {"jax": {}}}).encode(),
    "many versions": json.dumps(MADE | {"versions": dict.fromkeys(map(str, range(999)))}).encode(),
    "settings": json.dumps(MADE | {"settings": {"steps": 10**9}}).encode(),
    "no number": json.dumps(MADE).replace('"shift": 7.0', '"shift": NaN').encode(),
    "sparsity": json.dumps(MADE | {"settings": {"sparse": {"sparsity": {"density": 7}}}}).encode(),
    "fields": json.dumps(MADE | {"settings": {"stps": 3}}).encode(),
    "large": b"{" + b" " * (1 << 20),
}
FILES = {
    **{name: mp4(comment) for name, comment in COMMENTS.items()},
    "empty": b"",
    "no mp4": b"\x89PNG" * 100,
    "cut": mp4(b"{}")[:-1],
    "a box too large": mp4(b"{}", size=1 << 31),
    "a box too small": mp4(b"{}", size=9),
    "a box of nothing": mp4(b"{}", before=box(b"free", b"", 4)),
    "many boxes": mp4(b"{}", before=box(b"free", b"") * 20_000),
    "64 bits": mp4(b"{}", before=b"\0\0\0\1free" + b"\xff" * 8),
    "short 64 bits": box(b"ftyp", b"isom") + b"\0\0\0\1free",
    "no header": box(b"ftyp", b"isom") + b"abc",
    "moov alone": box(b"ftyp", b"isom") + box(b"moov", b""),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_files(content, tmp_path, capsys):
    file = tmp_path / "a.mp4"
    file.write_bytes(content)
    assert main(["sample", "--like", str(file), "--out", str(tmp_path / "b.mp4")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {file}: ")
    assert line.isprintable()
    assert len(line) < 1000
    assert [one.name for one in tmp_path.iterdir()] == ["a.mp4"]


def test_the_harness_makes_files_that_are_read(tmp_path):
    file = tmp_path / "a.mp4"
    for before in (b"", b"\0\0\0\1free" + (16).to_bytes(8, "big")):
        file.write_bytes(mp4(json.dumps(MADE).encode(), before=before))
        assert read_provenance(file).prompt == "a red circle"
    file.write_bytes(mp4(b"hello")[:-5] + b"world")
    assert read_comment(file) == "world"


def test_a_damaged_byte_anywhere_is_another_comment_or_refused(tmp_path):
    video = write_video(np.zeros((1, 2, 2, 3), np.uint8), tmp_path / "a.mp4", comment="comment")
    whole, random = video.read_bytes(), np.random.default_rng(0)
    for place in random.integers(0, len(whole), 200):
        video.write_bytes(whole[:place] + random.bytes(1) + whole[place + 1 :])
        try:
            comment = read_comment(video)
        except InputError:
            continue
        assert comment is None or len(comment) < 1000


@pytest.mark.parametrize("name", ["", "nowhere.mp4", "{fifo}", "/dev/zero", "a\0b", "{folder}"])
def test_names(name, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    name = name.replace("{fifo}", str(tmp_path / "pipe")).replace("{folder}", str(tmp_path))
    assert main(["sample", f"--like={name}", "--out", str(tmp_path / "b.mp4")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert [one.name for one in tmp_path.iterdir()] == ["pipe"]
