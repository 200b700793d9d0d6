"""Copies of checkpoints and compiled programs: whole or not at all, and what was interrupted goes on."""

import shutil

import numpy as np
import pytest
from small_disk import fill

from qsjax.checkpoint import CheckpointWriter, Manifest, load_item
from qsjax.copying import copy_checkpoint, copy_programs
from qsjax.errors import CheckpointError, InputError


def checkpoint(folder, value=1.0):
    writer = CheckpointWriter(folder, identity="test")
    for item in ("a", "b"):
        writer.write_item("dit", item, {f"{item}.w": np.full((500, 40), value, np.float32)})
    writer.finish({"components": {"dit": {"config": {}}}}, {"dit": ["a", "b"]})
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("source") / "c")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}  # fmt: skip


def test_a_copy_is_the_checkpoint(source, tmp_path):
    place = tmp_path / "drive" / "c"
    assert copy_checkpoint(source, place, progress=False) == place
    assert contents(place) == contents(source)
    assert [path.name for path in place.parent.iterdir()] == ["c"]
    (leaf,) = load_item(Manifest.read(place), "dit", "b").values()
    assert np.asarray(leaf).mean() == 1


def test_interrupted_at_every_file(source, tmp_path, monkeypatch):
    """What is half has no checkpoint's name, and no file is copied twice."""
    copyfile, copied = shutil.copyfile, []

    def dying(path, temporary):
        copyfile(path, temporary)
        if path not in copied:
            copied.append(path)
            raise KeyboardInterrupt
        copied.append(path)

    monkeypatch.setattr(shutil, "copyfile", dying)
    count = len(contents(source))
    for _ in range(count):
        with pytest.raises(KeyboardInterrupt):
            copy_checkpoint(source, tmp_path / "c", progress=False)
        assert not (tmp_path / "c").exists()
    copy_checkpoint(source, tmp_path / "c", progress=False)
    assert contents(tmp_path / "c") == contents(source)
    assert len(copied) == 2 * count
    copy_checkpoint(source, tmp_path / "c", progress=False)
    assert len(copied) == 2 * count
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_another_checkpoint_is_not_replaced_and_its_half_is_deleted(source, tmp_path, monkeypatch):
    other = checkpoint(tmp_path / "other", 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            copy_checkpoint(other, tmp_path / "c", progress=False)
    (tmp_path / "c.mine.copy").mkdir()
    copy_checkpoint(source, tmp_path / "c", progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"c", "c.mine.copy", "other"}
    with pytest.raises(InputError, match="is there already and not a copy of"):
        copy_checkpoint(other, tmp_path / "c", progress=False)
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(InputError, match="is there already and not a copy of"):
        copy_checkpoint(other, tmp_path / "file", progress=False)
    assert contents(tmp_path / "c") == contents(source)


@pytest.mark.parametrize("left", [0, 8192, 90_000])
def test_a_full_disk(left, source, small_disk, monkeypatch):
    fill(small_disk, left)
    place = small_disk / "c"
    with pytest.raises(InputError, match=r"needs 164 kB|No space left"):
        copy_checkpoint(source, place, progress=False)
    monkeypatch.setattr("qsjax.copying.require_room", lambda *_: None)
    with pytest.raises(InputError, match=r"c: cannot be written \(No space left on device\)"):
        copy_checkpoint(source, place, progress=False)
    assert not place.exists()
    (small_disk / "somebody's").unlink()
    copy_checkpoint(source, place, progress=False)
    assert contents(place) == contents(source)
    assert [path.name for path in small_disk.iterdir()] == ["c"]


def test_what_is_no_checkpoint(source, tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        copy_checkpoint(tmp_path, tmp_path / "c", progress=False)
    linked = tmp_path / "linked"
    shutil.copytree(source, linked)
    (linked / "dit" / "there").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="is a link or no file"):
        copy_checkpoint(linked, tmp_path / "c", progress=False)
    assert not (tmp_path / "c").exists()


def test_programs_are_copied_once(tmp_path):
    name = f"jit_step-{'0f' * 32}-cache"
    here, there = tmp_path / "here", tmp_path / "there"
    assert copy_programs(here, there, progress=False) == 0
    here.mkdir()
    (here / name).write_bytes(b"program")
    (here / f"jit_other-{'0f' * 32}-cache").symlink_to(here / name)
    (here / "notes-cache").write_bytes(b"mine")
    assert copy_programs(here, there, progress=False) == 1
    assert contents(there) == {name: b"program"}
    assert copy_programs(here, there, progress=False) == 0
    (here / name).unlink()
    assert copy_programs(there, here, progress=False) == 1
