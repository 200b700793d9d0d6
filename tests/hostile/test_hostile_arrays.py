"""Stored arrays of strangers and damaged ones: each is refused in a sentence, or its bits are right."""

import json
import os
import random
import shutil
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
import tensorstore as ts
from hostile.refusals import DEEP, refusal

from qsjax.checkpoint import (
    MANIFEST,
    CheckpointWriter,
    Manifest,
    StoredRows,
    arrays,
    values,
)
from qsjax.checkpoint.restore import read_item
from qsjax.dit import load_dit
from qsjax.errors import CheckpointError
from qsjax.text import TextEncoder
from qsjax.vae import load_vae

TREE = {
    "a": np.arange(60, dtype=np.float32).reshape(12, 5),
    "b": np.arange(7, dtype=np.int8),
    "c": np.zeros((3, 2), np.float32),
}


def write(folder):
    writer = CheckpointWriter(folder, identity="one")
    writer.write_item("model", "all", TREE)
    return writer.finish({"components": {"model": {}}}, {"model": ["all"]})


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sound") / "ckpt").directory


def read(folder, verify=True):
    arrays.forget_verified()
    return read_item(Manifest.read(folder), "model", "all", verify=verify)


def data_files(folder):
    files = (folder / "model").rglob("*")
    return sorted(path for path in files if path.is_file() and path.stat().st_size)


@pytest.mark.parametrize(
    "damage", ["missing", "half", "empty", "link", "loop", "fifo", "folder", "longer", "zeros"]
)
def test_a_damaged_data_file_is_a_sentence_or_does_no_harm(sound, tmp_path, damage):
    refused = 0
    for number, original in enumerate(data_files(sound)):
        folder = shutil.copytree(sound, tmp_path / f"{damage}{number}")
        path = folder / original.relative_to(sound)
        content = path.read_bytes()
        path.unlink()
        if damage == "half":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "empty":
            path.touch()
        elif damage == "link":
            path.symlink_to(original)
        elif damage == "loop":
            path.symlink_to(path)
        elif damage == "fifo":
            os.mkfifo(path)
        elif damage == "folder":
            path.mkdir()
        elif damage == "longer":
            path.write_bytes(content + content)
        elif damage == "zeros":
            path.write_bytes(bytes(len(content)))
        sentence = refusal(read, folder)
        if sentence is not None:
            refused += 1
            assert "model/all" in sentence or "link" in sentence
            continue
        for name, value in read(folder).items():
            np.testing.assert_array_equal(value, TREE[name])
    assert refused >= (
        0 if damage == "longer" else 2
    )  # the root and a node; Orbax leaves what it no longer needs


def replaced(sound, tmp_path, tree, **saving):
    """The checkpoint with an item that Orbax wrote anew."""
    folder = shutil.copytree(sound, tmp_path / "replaced")
    shutil.rmtree(folder / "model" / "all")
    context = ocp.Context()
    for name, value in saving.items():
        setattr(context.array.saving, name, value)
    with context:
        ocp.save(folder / "model" / "all", tree)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": TREE["a"][:6]}, "a has the shape"),
        ({"a": TREE["a"].T.copy()}, "a has the shape"),
        ({"a": TREE["a"].astype(np.int32)}, "a has the dtype"),
        ({"a": TREE["a"] + 1}, "a is not what was written"),
        ({"b": TREE["b"].view(np.uint8)}, "b has the dtype"),
        ({"d": TREE["b"]}, "holds 'd', which the manifest does not list"),
        ({"a": None}, "a is missing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["ocdbt", "files", "zarr"])
def test_other_arrays_than_the_manifest_lists_are_refused(sound, tmp_path, change, message, layout):
    tree = {name: value for name, value in (TREE | change).items() if value is not None}
    folder = replaced(
        sound, tmp_path, tree, use_ocdbt=layout == "ocdbt", use_zarr3=layout != "zarr"
    )
    with pytest.raises(CheckpointError, match=message):
        read(folder)


def test_without_digests_what_is_stored_is_loaded(sound, tmp_path):
    folder = replaced(sound, tmp_path, TREE | {"a": TREE["a"] + 1})
    np.testing.assert_array_equal(read(folder, verify=False)["a"], TREE["a"] + 1)


def test_a_digest_is_compared_once_a_process(sound, tmp_path, monkeypatch):
    folder, hashed = shutil.copytree(sound, tmp_path / "ckpt"), []
    sha256 = arrays.hashlib.sha256
    manifest = Manifest.read(folder)
    monkeypatch.setattr(arrays.hashlib, "sha256", lambda: hashed.append(1) or sha256())
    read_item(manifest, "model", "all", {"a"})
    assert len(hashed) == 1
    read_item(manifest, "model", "all")
    assert len(hashed) == len(TREE)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1 << 40, 5]},
        {"shape": "12"},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 40, 5]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 5]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": None}}},
        {"chunk_grid": []},
        {"codecs": [{"name": "blosc", "configuration": {"cname": "zstd", "clevel": 1, "shuffle": "noshuffle"}}]},
        {"codecs": [{"name": "gzip"}]},
        {"codecs": {}},
        {"codecs": None},
        {"data_type": "complex128"},
        {"data_type": 7},
        {"fill_value": 3.5},
        {"fill_value": "NaN"},
        {"zarr_format": 9},
        {"deep": DEEP * 2},
    ],
    ids=range(17),
)  # fmt: skip
def test_metadata_of_an_array_are_bounded(sound, tmp_path, change):
    folder = replaced(sound, tmp_path, TREE, use_ocdbt=False)
    path = folder / "model" / "all" / "state" / "a" / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    tracemalloc.start()
    try:
        loaded = read(folder)
    except CheckpointError:
        pass
    else:
        np.testing.assert_array_equal(loaded["a"], TREE["a"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def bomb(nbytes):
    """A Zstandard frame that expands to so many zeros (RFC 8878: blocks of one repeated byte)."""
    size = 1 << 17
    blocks = [((size << 3) | (1 << 1) | last).to_bytes(3, "little") + b"\0" for last in (0, 1)]
    return b"\x28\xb5\x2f\xfd\x00\x50" + blocks[0] * (nbytes // size - 1) + blocks[1]


@pytest.mark.parametrize("name", ["manifest.ocdbt", "d"])
def test_a_node_that_expands_to_gigabytes_is_not_expanded(sound, tmp_path, name, monkeypatch):
    folder = shutil.copytree(sound, tmp_path / "ckpt")
    path = folder / "model" / "all" / "state" / name
    path = next(path.iterdir()) if path.is_dir() else path
    node = path.read_bytes()
    path.write_bytes(node[:14] + bomb(4 << 30) + node[-4:])
    dumped, dump = [], ts.ocdbt.dump
    monkeypatch.setattr(ts.ocdbt, "dump", lambda *place: dumped.append(place) or dump(*place))
    if name == "d":  # the tree says how long the node is
        monkeypatch.setattr(
            "qsjax.checkpoint.values._Tree._place",
            lambda self, location: values.Value(path.stat().st_size, path),
        )
    with pytest.raises(CheckpointError, match="its tree expands to more than"):
        read(folder)
    assert len(dumped) == (name == "d")


@pytest.mark.parametrize("zarr3", [False, True])
def test_a_chunk_that_expands_to_gigabytes_is_not_expanded(sound, tmp_path, zarr3):
    folder = replaced(sound, tmp_path, TREE, use_ocdbt=False, use_zarr3=zarr3, use_compression=True)
    chunk = folder / "model" / "all" / "state" / "a" / ("c/0/0" if zarr3 else "0.0")
    np.testing.assert_array_equal(read(folder)["a"], TREE["a"])
    chunk.write_bytes(bomb(4 << 30) + (bytes(20) if zarr3 else b""))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        read(folder)


def test_arrays_that_no_file_holds_take_no_memory(tmp_path):
    """Chunks of zeros are not written, so that a few bytes could stand for as many gigabytes as one likes."""
    folder = write(tmp_path / "ckpt").directory
    data = Manifest.read(folder).data
    data["components"]["model"]["items"]["all"]["c"]["shape"] = [1 << 30, 64]
    (folder / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="should have 274877907"):
        read(folder)


@pytest.mark.parametrize("place", ["value::d/../../../etc:0:9", "value:../:d/aa:0:9", "value::d/aa:0:9", "btreenode::/etc/passwd:0:9"])  # fmt: skip
def test_a_tree_leads_nowhere_else(sound, tmp_path, monkeypatch, place):
    dump = ts.ocdbt.dump

    class Done:
        def __init__(self, value):
            self.value = value

        def result(self):
            return self.value

    def lying(store, node=None):
        found = dump(store, node).result() if node is not None else dump(store).result()
        if node is not None:
            found["entries"][0] = {"key": found["entries"][0]["key"], "indirect_value": place}
        return Done(found)

    monkeypatch.setattr(ts.ocdbt, "dump", lying)
    with pytest.raises(CheckpointError, match="where no file is"):
        read(sound)


def test_a_table_of_which_rows_are_read_is_compared_too(sound, tmp_path):
    folder = replaced(sound, tmp_path, TREE | {"a": TREE["a"] + 1})
    arrays.forget_verified()
    rows = np.array([3, 5])
    manifest = Manifest.read(folder)
    with pytest.raises(CheckpointError, match="a is not what was written"):
        StoredRows(manifest, "model", "a", (12, 5))(rows)
    found = StoredRows(manifest, "model", "a", (12, 5), verify=False)(rows)
    np.testing.assert_array_equal(found, TREE["a"][rows] + 1)
    np.testing.assert_array_equal(
        StoredRows(Manifest.read(sound), "model", "a", (12, 5))(rows), TREE["a"][rows]
    )


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("load", "component"),
    [(load_dit, "dit"), (load_vae, "vae"), (TextEncoder.load, "llama"), (TextEncoder.load, "clip"),
     (partial(TextEncoder.load, storage="int8"), "llama")],
    ids=["dit", "vae", "llama", "clip", "int8"],
)  # fmt: skip
def test_what_loads_compares_unless_told_not_to(tiny_checkpoint, tmp_path, load, component):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "ckpt")
    item = next(
        name for name in Manifest.read(folder).component(component).items if name != "embed"
    )
    state = folder / component / item / "state"
    path = max((state / "ocdbt.process_0" / "d").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    arrays.forget_verified()
    with pytest.raises(
        CheckpointError, match=f"item {component}/{item}: .* is not what was written"
    ):
        load(folder)
    load(folder, verify=False)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "flips",
    [20, pytest.param(200, marks=pytest.mark.many)],
)
@pytest.mark.parametrize("kind", ["by file", "by size"])
def test_no_flipped_bit_loads_other_numbers(tiny_checkpoint, tmp_path, flips, kind):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "flipped")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    weights = None if kind == "by file" else [path.stat().st_size for path in files]
    sound, random_bits, refused = Manifest.read(tiny_checkpoint), random.Random(flips), 0
    for path in random_bits.choices(files, weights, k=flips):
        content = path.read_bytes()
        bit = random_bits.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        arrays.forget_verified()
        name = path.relative_to(folder)
        try:
            found, expected = (
                part(manifest, name)
                for manifest, part in ((Manifest.read(folder), _part), (sound, _part))
            )
        except CheckpointError:
            refused += 1
        else:
            assert found == expected, (name, bit)
        path.write_bytes(content)
    assert refused >= flips // 10


def _part(manifest: Manifest, name: Path) -> object:
    """What a reader gets of a file."""
    if name.parts[0] == MANIFEST:
        return manifest.data
    if name.parts[0] == "tokenizers":
        return manifest.read_file(name.as_posix())
    item = read_item(manifest, *name.parts[:2])
    return {leaf: value.tobytes() for leaf, value in item.items()}
