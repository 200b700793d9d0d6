"""Manifests of strangers and damaged ones: each is refused in a sentence, or does no harm."""

import copy
import json
import os

import pytest
from hostile.refusals import DEEP, refusal

from convert.report import as_text, describe
from qsjax.budget import PlannedModel
from qsjax.checkpoint import (
    MANIFEST,
    Manifest,
    sealed,
)
from qsjax.errors import CheckpointError
from qsjax.opened import OpenCheckpoint

WRONG = [
    None,
    [],
    {},
    "q9",
    -1,
    1 << 62,
    1e300,
    True,
    [1, 2],
    {"a": 1},
    "../../x",
    "\x1b[31m",
    DEEP,
]


@pytest.fixture(scope="module")
def manifest(tiny_checkpoint):
    """A manifest of all four models, each with two leaves."""
    data = Manifest.read(tiny_checkpoint).data
    for component in data["components"].values():
        item, leaves = next(iter(component["items"].items()))
        component["items"] = {item: dict(list(leaves.items())[:2])}
    return data


def use(folder, data):
    """What commands do with a manifest before they read weights."""
    (folder / MANIFEST).write_text(json.dumps(data))
    manifest = Manifest.read(folder)
    as_text(describe(manifest))
    PlannedModel.of_checkpoint(manifest)
    OpenCheckpoint.from_checkpoint(folder, progress=False)


LEAF = ("components", "dit", "items", "ends", "patch_embed.kernel")
FIELDS = [
    *(("components",), ("files",), ("generation",), ("scheduler",), ("tiling",), ("prompt",), ("format_version",)),
    *(("libraries",), ("peak_memory_bytes",), ("components", "dit"), ("components", "vae")),
    *(("components", "dit", name) for name in ("config", "items", "recipe", "method", "clipped", "source")),
    *(("components", "dit", name) for name in ("calibration", "storage", "parameters", "bytes", "seconds")),
    *(("components", "dit", "config", name) for name in ("hidden_size", "num_heads", "patch_size", "rope_axes_dim")),
    *(("components", "dit", "config", name) for name in ("num_double_blocks", "mlp_ratio", "guidance_embeds")),
    *(("components", "vae", "config", name) for name in ("block_out_channels", "scaling_factor", "layers_per_block")),
    *(("components", "dit", "source", name) for name in ("ignored", "used", "layout", "prefix", "sha256")),
    *(("components", "dit", "items", "ends"), LEAF, *((*LEAF, name) for name in ("shape", "dtype", "sha256", "rows"))),
    *(("files", "tokenizers/llama/tokenizer.json"), ("files", "tokenizers/llama/tokenizer.json", "bytes")),
    *(("files", "tokenizers/llama/tokenizer.json", "sha256"), ("generation", "frames"), ("tiling", "pixels")),
]  # fmt: skip


def changed(data, path, value):
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return data


@pytest.mark.parametrize("path", FIELDS, ids="/".join)
def test_a_wrong_field_is_a_sentence_or_does_no_harm(manifest, tmp_path, path):
    for value in WRONG:
        sentence = refusal(use, tmp_path, changed(manifest, path, value))
        assert sentence is None or (sentence.isprintable() and len(sentence) < 2000)
    present = copy.deepcopy(manifest)
    inner = present
    for key in path[:-1]:
        inner = inner[key]
    if inner.pop(path[-1], None) is not None:
        refusal(use, tmp_path, present)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("components", "dit"), None, "component dit is None, expected an object"),
        (("components", "dit", "items"), [], "items is"),
        (("components", "dit", "items"), {}, "expected at least one"),
        (("components", "dit", "items", "ends"), {}, "expected at least one leaf"),
        (("components", "dit", "items", "/abs/victim"), {"x": {}}, "no plain name"),
        (("components", "dit", "items", ".."), {"x": {}}, "no plain name"),
        (("components", "../up"), {}, "no plain name"),
        (("components", "journal"), {}, "expected the name of a model"),
        ((*LEAF, "dtype"), "q9", "dtype is 'q9', expected one of"),
        ((*LEAF, "dtype"), "object", "dtype is 'object', expected one of"),
        ((*LEAF, "shape"), None, "expected a list of at most 8 lengths"),
        ((*LEAF, "shape"), [1] * 9, "expected a list of at most 8 lengths"),
        ((*LEAF, "shape"), [1 << 40, 1 << 40], "expected at most"),
        ((*LEAF, "shape"), [0, 1 << 43, 1 << 43], "expected at most"),
        ((*LEAF, "shape"), [-1, 2], "expected an integer from 0"),
        ((*LEAF, "shape"), [True, 2], "expected an integer from 0"),
        ((*LEAF, "sha256"), "0" * 63, "64 hexadecimal digits"),
        ((*LEAF, "sha256"), "G" * 64, "64 hexadecimal digits"),
        ((*LEAF, "rows"), [0, 3], "expected a range of 64"),
        ((*LEAF, "rows"), [64, 0], "expected a range of 64"),
        (("components", "vae", "bytes"), 1 << 62, "expected an integer from 0"),
        (("components", "llama", "storage"), "int4", "expected int8, or none"),
        (("files", "../secret.txt"), {}, "no plain name"),
        (("files", "l/../../../.bashrc"), {}, "no plain name"),
        (("files", "/etc/passwd"), {}, "no plain name"),
        (("files", "manifest.json"), {}, "a folder of its own"),
        (("files", "journal/x.json"), {}, "a folder of its own"),
        (("files", "dit/ends/state/x"), {}, "a folder of its own"),
        (("files", "tokenizers/llama/tokenizer.json", "bytes"), 1 << 40, "expected an integer from 0"),
        (("format_version",), 2, "upgrade qsjax"),
        (("format_version",), 0, "never was"),
        (("format_version",), True, "not a qsjax manifest"),
        (("sha256",), "0" * 64, "is damaged"),
    ],
)  # fmt: skip
def test_what_a_manifest_cannot_say(manifest, tmp_path, path, value, message):
    (tmp_path / MANIFEST).write_text(json.dumps(changed(manifest, path, value)))
    with pytest.raises(CheckpointError, match=message):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": NaN}', b"[" * 50_000, b'{"a": ' * 50_000, b'{"a": 1' + b"0" * 5000 + b"}",
     b'{"format_version": 1, "components": {}, "components": {}}', b'{"a": 1e999}'],
    ids=range(11),
)  # fmt: skip
def test_what_is_no_manifest(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "large"])
def test_a_manifest_is_a_regular_file(tmp_path, kind):
    path = tmp_path / MANIFEST
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(17 << 20)
    with pytest.raises(CheckpointError, match=r"name (a regular|a readable|the right) file"):
        Manifest.read(tmp_path)


def test_a_leaf_or_a_row_is_there_once(manifest, tmp_path):
    items = manifest["components"]["dit"]["items"]
    leaf = items["ends"]["patch_embed.kernel"]
    twice = changed(manifest, ("components", "dit", "items", "more"), {"patch_embed.kernel": leaf})
    halves = {
        "a": {"x": leaf | {"shape": [4, 2], "rows": [0, 4]}},
        "b": {"x": leaf | {"shape": [4, 2], "rows": [3, 7]}},
    }
    for data in (twice, changed(manifest, ("components", "dit", "items"), halves)):
        (tmp_path / MANIFEST).write_text(json.dumps(data))
        with pytest.raises(CheckpointError, match=r"there twice"):
            Manifest.read(tmp_path)


@pytest.mark.hostile
def test_a_manifest_notices_its_own_damage(manifest, tmp_path):
    written = sealed(manifest)
    text = json.dumps(written)
    for before, after in (
        ("256.0", "257.0"),
        ("bfloat16", "bfloat17"),
        ('"steps": 30', '"steps": 38'),
    ):
        assert before in text
        (tmp_path / MANIFEST).write_text(text.replace(before, after, 1))
        with pytest.raises(CheckpointError, match=r"is damaged|not usable"):
            Manifest.read(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps(written, indent=3, sort_keys=True))
    read = Manifest.read(tmp_path)
    assert "sha256" not in read.data
    assert sealed(read.data) == written
    del written["sha256"]  # as all were that an older qsjax wrote
    (tmp_path / MANIFEST).write_text(json.dumps(written))
    assert Manifest.read(tmp_path).digest == read.digest
