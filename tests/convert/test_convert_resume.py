"""An interrupted conversion leaves no half checkpoint, and the next one goes on where it stopped."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import convert_models as models
import pytest

from convert import Sources, convert
from qsjax.checkpoint import MANIFEST, CheckpointWriter, Manifest
from qsjax.errors import CheckpointError, InputError

# Kill this very process where a conversion is most fragile; argv: source, destination, place.
KILLED = """
import os, signal, sys
from pathlib import Path
from convert import Sources, convert
from qsjax.checkpoint import writer

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

place, count = sys.argv[3], 0
if place == "between data and journal":
    atomically = writer.write_atomically
    def write_once(path, content):
        global count
        count += path.parent.name == "journal"
        atomically(path, content) if count <= 2 else die()
    writer.write_atomically = write_once
else:
    writer.Path.rename = die
convert(Sources(transformer=Path(sys.argv[1])), Path(sys.argv[2]), progress=False)
"""
FINISHED = {"between data and journal": 2, "before the renaming": 6}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return Sources(transformer=models.save_dit(tmp_path_factory.mktemp("source") / "transformer"))


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    destination = tmp_path_factory.mktemp("expected") / "checkpoint"
    return models.digests(convert(source, destination, progress=False))


@pytest.fixture
def written(monkeypatch):
    """The items that are written during the test."""
    items, write = [], CheckpointWriter.write_item

    def count(self, component, item, leaves, **options):
        items.append(item)
        write(self, component, item, leaves, **options)

    monkeypatch.setattr(CheckpointWriter, "write_item", count)
    return items


@pytest.mark.parametrize("place", FINISHED)
def test_kill(place, source, expected, written, tmp_path):
    destination = tmp_path / "checkpoint"
    command = [sys.executable, "-c", KILLED, str(source.transformer), str(destination), place]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not destination.exists()
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Manifest.read(destination)
    manifest = convert(source, destination, progress=False)
    assert models.digests(manifest) == expected
    assert len(written) == len(manifest.data["components"]["dit"]["items"]) - FINISHED[place]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_interrupt(source, expected, written, tmp_path, monkeypatch):
    destination = tmp_path / "checkpoint"

    with monkeypatch.context() as patch:
        write = CheckpointWriter.write_item

        def stop(self, component, item, leaves, **options):
            if len(written) == 4:
                raise KeyboardInterrupt
            write(self, component, item, leaves, **options)

        patch.setattr(CheckpointWriter, "write_item", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(source, destination, progress=False)
    assert not destination.exists()
    assert models.digests(convert(source, destination, progress=False)) == expected
    assert len(written) == len(set(written))


def interrupt(source, destination, monkeypatch, **options):
    """Stop a conversion before its first item."""
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "write_item", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(source, destination, progress=False, **options)


def test_old_checkpoint_stays_until_the_new_one_is_whole(source, expected, tmp_path, monkeypatch):
    destination = tmp_path / "checkpoint"
    convert(source, destination, progress=False)
    before = (destination / MANIFEST).read_bytes()
    interrupt(source, destination, monkeypatch, dtype="float32", overwrite=True)
    assert (destination / MANIFEST).read_bytes() == before
    assert models.digests(Manifest.read(destination)) == expected
    manifest = convert(source, destination, progress=False, dtype="float32", overwrite=True)
    assert {spec[1] for spec in models.digests(manifest).values()} == {"float32"}


def test_other_sources_do_not_continue_the_work(source, tmp_path, monkeypatch):
    destination = tmp_path / "checkpoint"
    interrupt(source, destination, monkeypatch)
    with pytest.raises(InputError, match="unfinished conversion of other sources"):
        convert(source, destination, progress=False, dtype="float32")
    changed = Sources(transformer=models.save_dit(tmp_path / "transformer"))
    with pytest.raises(InputError, match="unfinished conversion of other sources"):
        convert(changed, destination, progress=False)


def test_existing_output_needs_overwrite(source, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    for options, message in (
        ({}, "pass `overwrite=True`"),
        ({"overwrite": True}, "is not a checkpoint"),
    ):
        with pytest.raises(InputError, match=message):
            convert(source, tmp_path / "checkpoint", progress=False, **options)


def test_unwritable_output(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        convert(source, tmp_path / "file" / "checkpoint", progress=False)


def test_no_space(source, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match=r"needs \d{3} kB, 1 kB are free"):
        convert(source, tmp_path / "checkpoint", progress=False)


def test_the_same_command_finds_its_work_done(source, expected, written, tmp_path, caplog):
    destination = tmp_path / "checkpoint"
    convert(source, destination, progress=False)
    count, before = len(written), (destination / MANIFEST).read_bytes()
    with caplog.at_level("INFO", logger="qsjax"):
        manifest = convert(source, destination, progress=False)
    assert "is there already, made by the same command" in caplog.text
    assert models.digests(manifest) == expected
    assert (destination / MANIFEST).read_bytes() == before
    assert len(written) == count
    # Another command does not take it for its own, and `overwrite` makes it anew.
    with pytest.raises(InputError, match="exists already"):
        convert(source, destination, progress=False, dtype="float32")
    convert(source, destination, progress=False, overwrite=True)
    assert len(written) == 2 * count
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_checkpoint_of_an_older_version_is_nobodys(source, tmp_path):
    manifest = convert(source, tmp_path / "checkpoint", progress=False)
    data = {key: value for key, value in manifest.data.items() if key not in ("identity", "sha256")}
    (tmp_path / "checkpoint" / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(InputError, match="exists already"):
        convert(source, tmp_path / "checkpoint", progress=False)


def test_a_folder_in_the_way_of_the_old_checkpoint_stays(source, tmp_path):
    destination = tmp_path / "checkpoint"
    convert(source, destination, progress=False)
    (tmp_path / "checkpoint.replaced").mkdir()
    (tmp_path / "checkpoint.replaced" / "mine").write_text("")
    with pytest.raises(InputError, match="in the way and not ours"):
        convert(source, destination, progress=False, overwrite=True)
    assert (tmp_path / "checkpoint.replaced" / "mine").exists()


def test_source_is_untouched(source, expected):
    files = sorted(path.name for path in Path(source.transformer).iterdir())
    assert files == ["config.json", "diffusion_pytorch_model.safetensors"]
