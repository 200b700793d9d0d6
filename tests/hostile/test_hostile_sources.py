"""Folders of strangers: indexes, tokenizers, templates and settings, each wrong in its own way."""

import json
import os
from pathlib import Path

import pytest
from text.text_tokenizers import write_llama_tokenizer

from convert.__main__ import main
from convert.bundled import tiny_model_directory
from convert.prompt_template import find_prompt_template
from convert.sources import Sources
from convert.tokenizers import tokenizer_files
from qsjax.errors import CheckpointError, QsjaxError

pytestmark = pytest.mark.hostile

DEEP = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
NO_JSON = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "nothing": b"null",
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "deep": DEEP,
    "NaN": b'{"a": NaN}',
    "infinite": b'{"a": 1e999}',
    "400 digits": b'{"a": ' + b"7" * 400 + b"}",
    "twice": b'{"a": 1, "a": 2}',
    "large": b'{"a": "' + b"x" * (2 << 20) + b'"}',
    "zeros": bytes(100),
    "a byte order mark": b"\xef\xbb\xbf{}",
}  # fmt: skip


def assert_one_sentence(error: Exception) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 1200


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
@pytest.mark.parametrize("name", ["model_index.json", "config.json"])
def test_an_index_that_is_none(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(QsjaxError) as caught:
        Sources.find(tmp_path)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
def test_a_template_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "template.json").write_bytes(content)
    with pytest.raises(QsjaxError, match=r"template\.json") as caught:
        find_prompt_template(tmp_path / "template.json")
    assert_one_sentence(caught.value)


@pytest.mark.parametrize(
    "value", [[], {}, ["HunyuanVideoPipeline"], 3, None, "\x1b[31m" * 10_000, "x" * 500_000]
)
@pytest.mark.parametrize("name", ["model_index.json", "config.json"])
def test_a_class_that_is_no_name(tmp_path: Path, name: str, value: object) -> None:
    (tmp_path / name).write_text(json.dumps({"_class_name": value}))
    with pytest.raises(QsjaxError) as caught:
        Sources.find(tmp_path)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "a\0b", "\x1b[31m", "\udcff"])
@pytest.mark.parametrize("part", ["source", "transformer", "text_encoder", "tokenizer", "config"])
def test_a_path_that_cannot_be(part: str, name: str) -> None:
    with pytest.raises(QsjaxError, match="does not exist") as caught:
        Sources.find(Path(name)) if part == "source" else Sources.find(**{part: Path(name)})
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.json"])
def test_a_tokenizer_that_is_none(tmp_path: Path, name: str, content: bytes) -> None:
    if name == "vocab.json":
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    else:
        write_llama_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(QsjaxError) as caught:
        tokenizer_files(tmp_path, vocabulary=50)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}, "added_tokens": []},
        {"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "x"}},
        {"model": {"type": "WordLevel", "vocab": {"a": 2**32}, "unk_token": "x"}},
        {"model": {"type": "WordLevel", "vocab": {"a": 1e9}, "unk_token": "x"}},
        {"model": {"type": "WordLevel", "vocab": {"a": 10**9}, "unk_token": "x"}},
        {"model": {"type": "WordLevel", "vocab": {"a": 50}, "unk_token": "x"}},
        {"model": {"type": "WordLevel", "vocab": [], "unk_token": "x"}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}},
        {"model": {"type": "Nothing"}},
        {"model": 3},
        {"model": None},
        {"added_tokens": 3},
        {"added_tokens": [{"id": -1, "content": "x"}]},
        {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "y", "type_id": 0}}]}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "["}, "content": ""}},
        {"truncation": 3},
        {"padding": {"strategy": {"Fixed": -1}}},
        {"version": "9.9"},
    ],
)  # fmt: skip
def test_a_tokenizer_of_impossible_parts(tmp_path: Path, change: dict[str, object]) -> None:
    write_llama_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json") as caught:
        tokenizer_files(tmp_path, vocabulary=50)
    assert_one_sentence(caught.value)


def test_ids_are_those_of_the_encoder(tmp_path: Path) -> None:
    write_llama_tokenizer(tmp_path)
    assert set(tokenizer_files(tmp_path, vocabulary=15)) == {"tokenizer.json", "tokenizer_config.json"}  # fmt: skip
    with pytest.raises(
        CheckpointError, match="has tokens with the id 14, and the text encoder knows 14"
    ):
        tokenizer_files(tmp_path, vocabulary=14)


WORDS = {"a": 0, "b": 1, "ab": 2, "<|startoftext|>": 3, "<|endoftext|>": 4}


@pytest.mark.parametrize(
    ("vocabulary", "merges"),
    [
        ({}, "a b"),
        ({"a": "0"}, ""),
        ({"a": -1}, ""),
        ({"a": True}, ""),
        ({"a": 1.0}, ""),
        ({"a": [0]}, ""),
        ({"a": 0, "b": 0}, ""),
        ({"a": 2**40}, ""),
        (WORDS | {"x": 10**9}, "a b"),
        (WORDS, "a"),
        (WORDS, "a b c"),
        (WORDS, "a c"),
        (WORDS, "b a"),
        (WORDS, "\x1b[31m " * 1000),
        (WORDS, "x" * 100_000),
        (WORDS, "a b\n\0\n"),
    ],
)
def test_a_clip_vocabulary_and_merges_that_do_not_fit(
    tmp_path: Path, vocabulary: dict[str, object], merges: str
) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    with pytest.raises(CheckpointError) as caught:
        tokenizer_files(tmp_path, vocabulary=50)
    assert_one_sentence(caught.value)


def test_merges_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(WORDS))
    (tmp_path / "merges.txt").write_bytes(b"a b\n\xff\n")
    with pytest.raises(QsjaxError, match=r"merges\.txt: is not UTF-8"):
        tokenizer_files(tmp_path, vocabulary=50)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The tiny model, by links to its folders; a case puts a file of its own where one is."""
    folder = tmp_path / "model"
    for path in tiny_model_directory().rglob("*"):
        if path.is_file():
            place = folder / path.relative_to(tiny_model_directory())
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    return folder


def put(model: Path, name: str, content: bytes) -> None:
    (model / name).unlink()
    (model / name).write_bytes(content)


SMALL_FILES = (
    "model_index.json", "qsjax.json", "prompt_template.json", "scheduler/scheduler_config.json", "transformer/config.json",
    "vae/config.json", "text_encoder/config.json", "text_encoder_2/config.json", "tokenizer/tokenizer.json",
    "tokenizer_2/tokenizer.json",
)  # fmt: skip


@pytest.mark.parametrize("name", SMALL_FILES)
@pytest.mark.parametrize("kind", ["fifo", "device", "deep", "no UTF-8"])
def test_a_small_file_of_the_model_is_another_thing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    (model / name).unlink()
    if kind == "fifo":
        os.mkfifo(model / name)  # opening it for reading waits for a writer
    elif kind == "device":
        (model / name).symlink_to("/dev/zero")
    else:
        (model / name).write_bytes(NO_JSON[kind])
    assert main([str(model), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qsjax.json", {"steps": -1}),
        ("qsjax.json", {"frames": 0}),
        ("qsjax.json", {"frames": 34}),
        ("qsjax.json", {"height": 63}),
        ("qsjax.json", {"width": 10**9}),
        ("qsjax.json", {"fps": 0}),
        ("qsjax.json", {"shift": 1e300}),
        ("qsjax.json", {"guidance": -1}),
        ("qsjax.json", {"more": 1}),
        ("scheduler/scheduler_config.json", {"shift": 0}),
        ("scheduler/scheduler_config.json", {"shift": -3}),
        ("scheduler/scheduler_config.json", {"shift": 1e300}),
        ("scheduler/scheduler_config.json", {"shift": "3"}),
        ("scheduler/scheduler_config.json", {"shift": True}),
        ("transformer/config.json", {"rope_theta": 0}),
        ("transformer/config.json", {"num_layers": 1_000_000}),
        ("transformer/config.json", {"num_layers": 1000}),
        ("transformer/config.json", {"num_single_layers": 0}),
        ("transformer/config.json", {"num_attention_heads": 10**9, "attention_head_dim": "ab"}),
        ("vae/config.json", {"scaling_factor": 1e-320}),
        ("vae/config.json", {"layers_per_block": 60}),
        ("vae/config.json", {"_class_name": []}),
        ("text_encoder/config.json", {"num_hidden_layers": 1000}),
        ("text_encoder/config.json", {"vocab_size": 3}),
        ("text_encoder_2/config.json", {"eos_token_id": -5}),
        ("text_encoder_2/config.json", {"num_hidden_layers": 1000}),
        ("prompt_template.json", {"template": "no slot"}),
        ("prompt_template.json", {"max_length": 10**9}),
    ],
)
def test_a_value_of_the_model_that_cannot_be(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: dict[str, object],
) -> None:
    values = json.loads((model / name).read_text())
    put(model, name, json.dumps(values | change).encode())
    assert main([str(model), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert len(err) < 2500
    assert not (tmp_path / "out").exists()
