"""Tokenizers and records of strangers and damaged ones: each is refused in a sentence."""

import os
import shutil

import pytest
from hostile.refusals import refusal

from qsjax.checkpoint import (
    Manifest,
)
from qsjax.errors import CheckpointError
from qsjax.experiments.results import FILE, Results
from qsjax.text import PromptTokenizer


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 50_000, b'{"pad_token": []}', b'{"pad_token": {"content": 7}}', b'{"pad_token": "x"}'],
    ids=range(9),
)  # fmt: skip
def test_a_tokenizer_that_is_none(tiny_checkpoint, name, content):
    folder = tiny_checkpoint / "tokenizers" / "llama"
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {name: content}
    sentence = refusal(lambda: PromptTokenizer(folder, length=24, files=files))
    assert sentence is not None
    assert sentence.isprintable()


def test_tokenizers_are_compared_with_the_manifest(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "ckpt")
    name = "tokenizers/llama/tokenizer.json"
    content = (folder / name).read_bytes()
    manifest = Manifest.read(folder)
    assert manifest.read_file(name) == content
    (folder / name).write_bytes(content[:-1] + b" ")
    with pytest.raises(CheckpointError, match="is not what was written"):
        manifest.read_file(name)
    (folder / name).write_bytes(content * 2)
    with pytest.raises(CheckpointError, match="has more than"):
        manifest.read_file(name)
    (folder / name).unlink()
    (folder / name).symlink_to(tiny_checkpoint / name)
    with pytest.raises(CheckpointError, match="is a link"):
        manifest.read_file(name)
    with pytest.raises(CheckpointError, match="is not in the manifest"):
        manifest.read_file("tokenizers/llama/other.json")


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"[]", b"null", b"{", b"\xff", b"[" * 50_000, b'{"run": 7}', b'{"key": "a"}', b'{"run": {}}\n[]',
     b'{"run": {}}\n{"row": 1}', b'{"run": {}}\n{"key": 7}', b'{"run": {}}\n{"key": "a"}\n{"key": "a"}', b'{"run": {}}\n{"key": "a", "x": NaN}',
     b'{"run": {"model": "\x1b[31m"}}', None],
    ids=range(16),
)  # fmt: skip
def test_records_of_a_grid(tmp_path, content):
    path = tmp_path / FILE
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    sentence = refusal(Results, tmp_path, {"model": "m"})
    assert sentence is not None
    assert sentence.isprintable()
    path.unlink()
    Results(tmp_path, {"model": "m"}).add("a", {"x": 1})
    assert Results(tmp_path, {"model": "m"}).get("a") == {"key": "a", "x": 1}
