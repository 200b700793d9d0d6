"""Files of the hub are deleted when their tensors are written: nothing is lost, fetched twice, or deleted that is not ours."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import convert_models as models
import pytest
from hub.hub_server import COMMIT, REPO, reached_alone
from test_convert_hub import in_shards

from convert import hub_files
from convert.__main__ import main
from convert.sources import Sources
from convert.stream import convert as write_checkpoint
from qsjax import convert
from qsjax.checkpoint import Manifest, writer
from qsjax.errors import InputError
from qsjax.locks import lock

ADDRESS = f"hf://{REPO}/transformer"
SHARDS = 4


class Killed(BaseException):
    """As Ctrl-C, at any place."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    models.save_dit(folder / "transformer")
    in_shards(folder / "transformer", SHARDS)
    return folder


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    """The checkpoint of the same files on a disk."""
    sources = Sources(transformer=model / "transformer")
    return write_checkpoint(sources, tmp_path_factory.mktemp("out") / "out", progress=False)


@pytest.fixture
def hub(model, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_files, "_HEADER", 1 << 12)  # else it is all of these files
    with reached_alone(monkeypatch, model, tmp_path) as server:
        yield server


def run(tmp_path, **options):
    done = convert(ADDRESS, tmp_path / "out", delete_source=True, progress=False, **options)
    return done.manifest


def shards(tmp_path, suffix=".safetensors"):
    return sorted(path.name for path in (tmp_path / "cache").rglob(f"*{suffix}"))


def total(model):
    return sum(path.stat().st_size for path in (model / "transformer").iterdir())


def same(manifest, expected):
    assert models.digests(manifest) == models.digests(expected)
    assert manifest.components["dit"].source["sha256"] == expected.components["dit"].source["sha256"]  # fmt: skip
    assert Manifest.read(manifest.directory).components["dit"].items.keys() == expected.components["dit"].items.keys()  # fmt: skip


def test_never_all_shards_at_a_time(hub, model, expected, tmp_path, caplog):
    most = []
    hub.on_block = lambda sent: most.append(len(shards(tmp_path)))
    with caplog.at_level("INFO", logger="qsjax"):
        same(run(tmp_path), expected)
    assert max(most) < SHARDS  # an item may have tensors in three of them
    assert caplog.text.count("is deleted, all of it is written") == SHARDS
    assert shards(tmp_path) == []
    assert hub.sent == total(model)
    same(run(tmp_path), expected)  # its work is done, and nothing is needed for that
    assert hub.sent == total(model)
    assert (model / "transformer").is_dir()


def events(monkeypatch, end):
    """Die before the change of a disk with this number; returns the list of all that were done."""
    done, unlink = [], Path.unlink

    def dying(change):
        def wrapped(*arguments, **options):
            # The system removes the locks of a process that dies.
            if change is unlink and arguments[0].suffix != ".safetensors":
                return unlink(*arguments, **options)
            if len(done) == end:
                raise Killed
            done.append(change.__name__)
            return change(*arguments, **options)

        return wrapped

    monkeypatch.setattr(writer, "write_atomically", dying(writer.write_atomically))
    monkeypatch.setattr(writer, "store", dying(writer.store))
    monkeypatch.setattr(writer, "replace_folder", dying(writer.replace_folder))
    monkeypatch.setattr(hub_files, "write_atomically", dying(hub_files.write_atomically))
    monkeypatch.setattr(Path, "unlink", dying(Path.unlink))
    return done


def interrupted(hub, model, expected, tmp_path, monkeypatch, end):
    with monkeypatch.context() as patch:
        done = events(patch, end)
        try:
            run(tmp_path)
        except Killed:
            assert len(done) == end
        else:
            assert len(done) < end
    same(run(tmp_path), expected)
    assert hub.sent == total(model)
    assert shards(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out"]


@pytest.mark.parametrize("end", [20, 37, 45, 52, 66])
def test_interrupted(hub, model, expected, tmp_path, monkeypatch, end):
    interrupted(hub, model, expected, tmp_path, monkeypatch, end)


@pytest.mark.slow
@pytest.mark.parametrize("end", range(100))
def test_interrupted_at_every_change(hub, model, expected, tmp_path, monkeypatch, end):
    interrupted(hub, model, expected, tmp_path, monkeypatch, end)


def command(hub, tmp_path):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "theirs"),
    }
    words = [sys.executable, "-m", "convert", ADDRESS, tmp_path / "out", "--delete-source"]
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.whole
def test_killed_at_random(hub, model, expected, tmp_path):
    """Ten kills while bytes come or are written; of what is on the wire a little is lost."""
    noise = random.Random(2)
    size = total(model)
    for moment in sorted(noise.sample(range(size // 10, size), 10)):
        process = command(hub, tmp_path)
        hub.on_block = lambda sent, process=process, moment=moment: (
            process.kill() if sent >= moment else None
        )
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0)
    hub.on_block = lambda sent: None
    process = command(hub, tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    same(Manifest.read(tmp_path / "out"), expected)
    assert shards(tmp_path) == []
    for name in {name for name, _ in hub.asked}:
        starts = [start for asked, start in hub.asked if asked == name]
        assert starts == sorted(starts), name
    largest = max(path.stat().st_size for path in (model / "transformer").iterdir())
    assert hub.sent <= size + 10 * largest  # what was on its way at each kill


def test_without_a_network_from_what_is_left(hub, expected, tmp_path, monkeypatch):
    """Two shards are written and gone, the others are here."""
    for path in ("transformer",):
        convert(f"hf://{REPO}/{path}", tmp_path / "other", progress=False)
    with monkeypatch.context() as patch:
        release, released = hub_files.HubFiles.release, []

        def stop(self, path):
            release(self, path)
            released.append(path)
            if len(released) == 2:
                raise Killed

        patch.setattr(hub_files.HubFiles, "release", stop)
        with pytest.raises(Killed):
            run(tmp_path)
    assert len(shards(tmp_path)) == SHARDS - 2
    hub.fault = (500, "")
    same(run(tmp_path, offline=True), expected)
    assert shards(tmp_path) == []
    assert convert(ADDRESS, tmp_path / "out", offline=True, progress=False).manifest is not None
    with pytest.raises(InputError, match="4 of 4 files are not here"):
        convert(ADDRESS, tmp_path / "third", dtype="float32", offline=True, progress=False)
    assert not list(tmp_path.glob("third*"))


def test_files_of_others_stay(hub, model, expected, tmp_path, monkeypatch):
    theirs = tmp_path / "theirs"
    shutil.copytree(model / "transformer", theirs / "transformer")
    found = {path.name: path for path in (theirs / "transformer").glob("*-0000[12]-*")}
    monkeypatch.setattr(
        "qsjax.hub.folder.try_to_load_from_cache",
        lambda repo, name, *, revision: str(found[Path(name).name]) if Path(name).name in found else None,
    )  # fmt: skip
    same(run(tmp_path), expected)
    assert len(shards(tmp_path)) == 2
    assert all(path.is_file() for path in found.values())
    assert hub.sent == total(model) - sum(path.stat().st_size for path in found.values())
    home = tmp_path / "cache/hub/owner--model" / COMMIT
    home.rename(tmp_path / "elsewhere")
    home.symlink_to(tmp_path / "elsewhere")
    run(tmp_path, dtype="float32", overwrite=True)
    assert len(list((tmp_path / "elsewhere").rglob("*.safetensors"))) == SHARDS


def test_what_was_downloaded_before_goes_too(hub, model, expected, tmp_path):
    convert(ADDRESS, tmp_path / "out", progress=False)
    assert len(shards(tmp_path)) == SHARDS
    run(tmp_path)
    assert shards(tmp_path) == []
    assert len(shards(tmp_path, ".head")) == SHARDS
    again = convert(ADDRESS, tmp_path / "other", progress=False)  # fetches them once more
    same(again.manifest, expected)


def test_a_damaged_head_is_fetched_again(hub, model, tmp_path):
    run(tmp_path)
    heads = list((tmp_path / "cache").rglob("*.head"))
    for head, content in zip(heads, (b"", b"\xff" * 9, heads[2].read_bytes()[:-1], bytes(100)), strict=True):  # fmt: skip
        head.write_bytes(content)
    sent = hub.sent
    run(tmp_path)
    assert sent < hub.sent < sent + total(model)


def test_less_room_is_needed(hub, model, expected, tmp_path, monkeypatch):
    free = expected.components["dit"].bytes + 85 * total(model) // 100
    monkeypatch.setattr("convert.early.free_bytes", lambda _: free)
    with pytest.raises(InputError, match="or pass `delete_source=True`"):
        convert(ADDRESS, tmp_path / "out", progress=False)
    assert list(tmp_path.glob("out*")) == []
    same(run(tmp_path), expected)


def test_the_command(hub, model, tmp_path, capsys):
    words = [ADDRESS, str(tmp_path / "out"), "--delete-source", "--quantize", "rtn-w4a8"]
    assert main([*words, "--verify"]) == 0
    assert "(0 of them made again from the source)" in capsys.readouterr().out
    assert main([str(model / "transformer"), str(tmp_path / "other"), "--delete-source"]) == 2
    assert "--delete-source is for a model of the hub" in capsys.readouterr().err
    assert len(list((model / "transformer").glob("*.safetensors"))) == SHARDS


def test_another_process_at_the_same_place(hub, model, tmp_path):
    with (
        lock(tmp_path / "out", doing="convert", identity="another"),
        pytest.raises(InputError, match="is at work there"),
    ):
        run(tmp_path)
    assert hub.sent < total(model) // 2
