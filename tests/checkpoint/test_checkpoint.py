"""The checkpoint directory: atomic, resumable, complete or refused."""

import importlib
import json
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from compilations import compilations
from flax import nnx

from qsjax.checkpoint import (
    MANIFEST,
    CheckpointWriter,
    Manifest,
    StoredRows,
    load_item,
    restore,
)
from qsjax.checkpoint.arrays import aligned
from qsjax.checkpoint.restore import ITEMS_AHEAD, read_ahead, read_item
from qsjax.errors import CheckpointError, InputError


class Block(nnx.Module):
    def __init__(self, rngs):
        self.proj = nnx.Linear(3, 4, rngs=rngs)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Param(jnp.zeros((6, 3)))
        self.blocks = nnx.vmap(Block)(rngs.split(2))
        self.tail = nnx.List([nnx.Linear(4, 1, rngs=rngs)])


def abstract():
    return nnx.eval_shape(lambda: Model(nnx.Rngs(0)))


def leaves():
    rng = np.random.default_rng(0)

    def array(*shape):
        return rng.standard_normal(shape).astype(jnp.bfloat16)

    blocks = {
        f"blocks.{i}.proj.{leaf}": array(*shape)
        for i in range(2)
        for leaf, shape in (("kernel", (3, 4)), ("bias", (4,)))
    }
    return {"embed": array(6, 3), **blocks, "tail.0.kernel": array(4, 1), "tail.0.bias": array(1)}


def write(destination, tree, **options):
    writer = CheckpointWriter(destination, identity="one", **options)
    names = [name for name in tree if name != "embed"]
    writer.write_item("model", "a", {"embed": tree["embed"][:4]}, rows={"embed": (0, 4)})
    writer.write_item("model", "b", {"embed": tree["embed"][4:]}, rows={"embed": (4, 6)})
    writer.write_item("model", "c", {name: tree[name] for name in names})
    data = {"components": {"model": {"config": {}}}}
    return writer.finish(data, {"model": ["a", "b", "c"]})


def test_round_trip_stacks_blocks_and_joins_rows(tmp_path):
    tree = leaves()
    write(tmp_path / "ckpt", tree)
    model = restore(
        Manifest.read(tmp_path / "ckpt"), "model", abstract(), dtype=jnp.dtype("bfloat16")
    )
    np.testing.assert_array_equal(model.embed.get_value(), tree["embed"])
    np.testing.assert_array_equal(
        model.blocks.proj.kernel.get_value()[1], tree["blocks.1.proj.kernel"]
    )
    np.testing.assert_array_equal(model.tail[0].bias.get_value(), tree["tail.0.bias"])


def test_rows_are_read_from_the_pieces_that_hold_them(tmp_path, monkeypatch):
    tree, manifest = leaves(), write(tmp_path / "ckpt", leaves())
    rows, read = StoredRows(manifest, "model", "embed", (6, 3)), []
    found = rows._read

    def counting(piece, numbers):
        read.append((piece.item, list(numbers)))
        return found(piece, numbers)

    monkeypatch.setattr(rows, "_read", counting)
    np.testing.assert_array_equal(rows(np.array([[1, 3], [3, 1]])), tree["embed"][[[1, 3], [3, 1]]])
    np.testing.assert_array_equal(rows(np.array([5, 1])), tree["embed"][[5, 1]])
    assert read == [
        ("a", [1, 3]),
        ("b", [1]),
    ]  # numbers within the piece; what is known is not read again
    assert rows(np.array([0])).dtype == rows.dtype == jnp.bfloat16


def test_rows_that_are_not_there_are_refused(tmp_path):
    manifest = write(tmp_path / "ckpt", leaves())
    with pytest.raises(CheckpointError, match="the rows of embed from 6 on are missing"):
        StoredRows(manifest, "model", "embed", (7, 3))
    with pytest.raises(CheckpointError, match="the rows of embed from 0 on are missing"):
        StoredRows(manifest, "model", "embed", (6, 4))
    rows = StoredRows(manifest, "model", "embed", (6, 3))
    shutil.rmtree(tmp_path / "ckpt" / "model" / "b")
    assert rows(np.array([3])).shape == (1, 3)
    with pytest.raises(CheckpointError, match="item model/b cannot be loaded"):
        rows(np.array([4]))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("ocdbt", [False, True])
@pytest.mark.parametrize("zarr3", [False, True])
def test_rows_are_found_in_every_layout_of_orbax(tmp_path, compressed, ocdbt, zarr3):
    context = ocp.Context()
    saving = context.array.saving
    saving.use_compression, saving.use_ocdbt, saving.use_zarr3 = compressed, ocdbt, zarr3
    table = leaves()["embed"]
    write(tmp_path / "ckpt", leaves())
    for item, rows in (("a", table[:4]), ("b", table[4:])):
        place = tmp_path / "ckpt" / "model" / item
        shutil.rmtree(place)
        with context:
            ocp.save(place, {"embed": rows})
    rows = StoredRows(Manifest.read(tmp_path / "ckpt"), "model", "embed", (6, 3))
    np.testing.assert_array_equal(rows(np.arange(6)), table)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_what_is_loaded_on_a_cpu_is_not_copied(dtype):
    array = aligned((300, 201), jnp.dtype(dtype))
    array[...] = 3
    placed = jax.device_put(array)
    assert (placed.shape, placed.dtype) == ((300, 201), jnp.dtype(dtype))
    np.testing.assert_array_equal(np.asarray(placed, np.float32), 3)
    if dtype != "int4":  # XLA packs those
        assert placed.unsafe_buffer_pointer() == array.ctypes.data


def test_loading_compiles_nothing_on_a_cpu(tmp_path):
    manifest = write(tmp_path / "ckpt", leaves())
    with compilations() as programs:
        restore(manifest, "model", abstract(), dtype=jnp.dtype("float32"))
    assert not programs
    assert not (tmp_path / "ckpt.tmp").exists()


def test_a_part_of_a_component_reads_only_its_leaves(tmp_path, monkeypatch):
    tree, read = leaves(), []
    manifest = write(tmp_path / "ckpt", tree)
    part = {"blocks.0.proj.bias", "blocks.1.proj.bias"}
    assert load_item(manifest, "model", "c", part).keys() == part

    partial_model = abstract()
    del partial_model.embed, partial_model.tail, partial_model.blocks.proj.kernel

    def count(manifest, component, item, wanted, **options):
        read.append((item, set(wanted)))
        return read_item(manifest, component, item, wanted, **options)

    module = importlib.import_module("qsjax.checkpoint.restore")
    monkeypatch.setattr(module, "read_item", count)
    model = restore(manifest, "model", partial_model, wanted=part.__contains__)
    assert read == [("c", part)]
    np.testing.assert_array_equal(
        model.blocks.proj.bias.get_value()[1], tree["blocks.1.proj.bias"].astype(np.float32)
    )


def test_bytes_are_stored_as_they_are_and_compressed_items_are_read(tmp_path):
    tree = {"embed": np.zeros((2**18, 4), np.float32)}
    tree["embed"][5] = 1
    writer = CheckpointWriter(tmp_path / "ckpt", identity="one")
    writer.write_item("model", "a", tree)
    manifest = writer.finish({"components": {"model": {"config": {}}}}, {"model": ["a"]})

    def stored():
        files = (tmp_path / "ckpt" / "model" / "a").rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())

    assert stored() > tree["embed"].nbytes
    shutil.rmtree(tmp_path / "ckpt" / "model" / "a")
    ocp.save(tmp_path / "ckpt" / "model" / "a", tree)  # as it was done before
    assert stored() < tree["embed"].nbytes / 10
    np.testing.assert_array_equal(load_item(manifest, "model", "a")["embed"], tree["embed"])


def test_the_next_items_are_read_while_one_is_placed():
    begun, all_begun = [], threading.Event()

    def read(item):
        begun.append(item)
        if len(begun) == 1 + ITEMS_AHEAD:
            all_begun.set()
        if item == "e":
            raise CheckpointError("e cannot be loaded")
        return item.upper()

    reading = read_ahead(read, "abcde")
    assert next(reading) == "A"
    assert all_begun.wait(60)
    assert begun == ["a", "b", "c"]
    assert [next(reading) for _ in range(3)] == ["B", "C", "D"]
    with pytest.raises(CheckpointError, match="e cannot"):
        next(reading)


def test_relative_paths_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("here/ckpt"), leaves())
    assert restore(Manifest.read("here/ckpt"), "model", abstract()).embed.get_value().shape == (
        6,
        3,
    )


def test_nothing_appears_before_finish_and_work_resumes(tmp_path):
    tree = leaves()
    writer = CheckpointWriter(tmp_path / "ckpt", identity="one")
    writer.write_item("model", "a", {"embed": tree["embed"]})
    assert not (tmp_path / "ckpt").exists()
    again = CheckpointWriter(tmp_path / "ckpt", identity="one")
    assert list(again.finished_items()) == ["model/a"]
    with pytest.raises(InputError, match="unfinished"):
        CheckpointWriter(tmp_path / "ckpt", identity="two")
    assert not CheckpointWriter(tmp_path / "ckpt", identity="two", overwrite=True).finished_items()


def test_overwrite_is_explicit_and_only_for_checkpoints(tmp_path):
    tree = leaves()
    write(tmp_path / "ckpt", tree)
    with pytest.raises(InputError, match="pass `overwrite=True`"):
        CheckpointWriter(tmp_path / "ckpt", identity="one")
    tree["tail.0.bias"] += 1
    write(tmp_path / "ckpt", tree, overwrite=True)
    model = restore(
        Manifest.read(tmp_path / "ckpt"), "model", abstract(), dtype=jnp.dtype("bfloat16")
    )
    np.testing.assert_array_equal(model.tail[0].bias.get_value(), tree["tail.0.bias"])
    (tmp_path / "new.tmp").mkdir()
    (tmp_path / "new.tmp" / "mine.txt").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not ours"):
            CheckpointWriter(tmp_path / "new", identity="one", overwrite=overwrite)
    assert (tmp_path / "new.tmp" / "mine.txt").exists()
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="not a checkpoint"):
        CheckpointWriter(tmp_path / "photos", identity="one", overwrite=True)


@pytest.mark.parametrize("nth", [1, 2])
def test_an_interrupted_replacement_is_finished_by_the_same_call(tmp_path, monkeypatch, nth):
    tree, renames = leaves(), []
    write(tmp_path / "ckpt", tree)
    tree["tail.0.bias"] += 1
    rename = Path.rename

    def stopping(path, target):
        renames.append(path)
        if len(renames) == nth:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stopping)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "ckpt", tree, overwrite=True)
    monkeypatch.undo()
    write(tmp_path / "ckpt", tree, overwrite=True)
    model = restore(
        Manifest.read(tmp_path / "ckpt"), "model", abstract(), dtype=jnp.dtype("bfloat16")
    )
    np.testing.assert_array_equal(model.tail[0].bias.get_value(), tree["tail.0.bias"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt"]
    assert not (tmp_path / "ckpt" / "journal").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.update(format_version=99), "upgrade"),
        (lambda data: data.pop("components"), "not a qsjax manifest"),
    ],
)
def test_unreadable_manifests_are_refused(tmp_path, damage, message):
    write(tmp_path / "ckpt", leaves())
    path = tmp_path / "ckpt" / MANIFEST
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=message):
        Manifest.read(tmp_path / "ckpt")


def test_folders_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no manifest"):
        Manifest.read(tmp_path)
    with pytest.raises(CheckpointError, match="nothing there"):
        Manifest.read(tmp_path / "absent")


def test_missing_surplus_and_misshapen_leaves_are_reported_together(tmp_path):
    tree = leaves()
    del tree["blocks.1.proj.bias"]
    tree["blocks.7.proj.bias"] = np.zeros(4, jnp.bfloat16)
    tree["tail.0.kernel"] = np.zeros((4, 2), jnp.bfloat16)
    write(tmp_path / "ckpt", tree)
    with pytest.raises(CheckpointError, match=r"surplus blocks\.7\.proj\.bias") as caught:
        restore(Manifest.read(tmp_path / "ckpt"), "model", abstract())
    assert "missing blocks.proj.bias from index 1" in str(caught.value)
    assert "tail.0.kernel has shape (4, 2)" in str(caught.value)


def test_damaged_items_are_named(tmp_path):
    write(tmp_path / "ckpt", leaves())
    for path in (tmp_path / "ckpt" / "model" / "c").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="model/c"):
        restore(Manifest.read(tmp_path / "ckpt"), "model", abstract())
