"""Names and places of strangers, when something is written: nothing outside the destination, and one sentence."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from calibration.calibration_models import METHOD, RECIPE, random_checkpoint, random_samples

from convert import Sources, convert, export
from qsjax.calibration import Gathered
from qsjax.calibration.checkpoint import calibrate_checkpoint
from qsjax.checkpoint import MANIFEST, CheckpointWriter
from qsjax.disk import write_atomically
from qsjax.errors import CheckpointError, InputError, QsjaxError
from qsjax.experiments.results import Results
from qsjax.locks import lock
from qsjax.video import check_writable, write_contact_sheet, write_video

LEAVES = {"w": np.ones((2, 2), np.float32)}
VIDEO = np.zeros((5, 16, 16, 3), np.uint8)
NAMES = {
    "empty": "",
    "here": ".",
    "up": "..",
    "hidden": ".ssh",
    "a separator": "a/b",
    "a way out": "../victim",
    "far out": "../../../../../../../../victim",
    "absolute": "VICTIM",
    "Windows": "a\\..\\victim",
    "a drive": "c:victim",
    "a zero byte": "a\0b",
    "a line": "a\nb",
    "a color": "\x1b[31mred",
    "long": "n" * 300,
    "longer": "n" * 100_000,
    "spaces": " a ",
    "surrogates": "\ud800",
}


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """A small float checkpoint; the files that it was made from are beside it."""
    return random_checkpoint(tmp_path_factory.mktemp("floats"))


@pytest.fixture
def victim(tmp_path):
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    yield folder
    assert (folder / "precious").read_text() == "precious"
    assert os.listdir(folder) == ["precious"]


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "checkpoint"


def attacked(name, victim):
    return str(victim) if name == "VICTIM" else name


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
@pytest.mark.parametrize("part", ["component", "item"])
@pytest.mark.parametrize("call", ["write", "copy"])
def test_names_of_items(call, part, name, victim, out):
    """`copy_item` deleted what had the name that the other manifest gave, wherever it was."""
    names = {"component": "dit", "item": "a"} | {part: attacked(name, victim)}
    writer = CheckpointWriter(out, identity="a" * 64)
    write = {
        "write": lambda: writer.write_item(**names, leaves=LEAVES),
        "copy": lambda: writer.copy_item(victim.parent, **names, specifications={}),
    }
    with pytest.raises(CheckpointError, match="no plain name"):
        write[call]()
    assert writer.finished_items() == {}


@pytest.mark.parametrize("name", [*NAMES, "deep"])
def test_names_of_files(name, victim, out):
    path = "/".join("abcdefghi") if name == "deep" else attacked(NAMES[name], victim)
    if name == "a separator":
        path = "a//b"
    writer = CheckpointWriter(out, identity="a" * 64)
    with pytest.raises(CheckpointError, match=r"no plain name|no path inside"):
        writer.write_file(path, b"overwritten")


def test_links_in_the_work_are_not_followed(victim, out):
    writer = CheckpointWriter(out, identity="a" * 64)
    (out.with_name("checkpoint.tmp") / "tokenizers").symlink_to(victim)
    with pytest.raises(CheckpointError, match="is a link"):
        writer.write_file("tokenizers/precious", b"overwritten")


def link(source, victim):
    (source / "w").symlink_to(victim / "precious")


def link_of_a_folder(source, victim):
    (source / "d").symlink_to(victim)


def pipe(source, victim):
    os.mkfifo(source / "w")


def itself_a_link(source, victim):
    shutil.rmtree(source)
    source.symlink_to(victim)


def absent(source, victim):
    shutil.rmtree(source)


def a_file(source, victim):
    shutil.rmtree(source)
    source.write_text("")


def folders_in_each_other(source, victim):
    (source / "/".join("d" * 500)).mkdir(parents=True)


def above_a_link(source, victim):
    shutil.rmtree(source.parent)
    (victim.parent / "elsewhere" / "a").mkdir(parents=True)
    source.parent.symlink_to(victim.parent / "elsewhere")


@pytest.mark.parametrize("damage", [link, link_of_a_folder, pipe, itself_a_link, absent, a_file, folders_in_each_other, above_a_link])  # fmt: skip
def test_what_is_copied_of_another_checkpoint(damage, victim, out, tmp_path):
    source = tmp_path / "source" / "vae" / "a"
    (source / "d").mkdir(parents=True)
    (source / "d").rmdir()
    damage(source, victim)
    writer = CheckpointWriter(out, identity="a" * 64)
    with pytest.raises(CheckpointError):
        writer.copy_item(tmp_path / "source", "vae", "a", {})
    assert writer.finished_items() == {}


def extra_item(data, victim):
    data["components"]["extra"] = {"config": {}, "items": {str(victim): {}}}


def extra_component(data, victim):
    data["components"][str(victim)] = {"config": {}, "items": {"a": {}}}


def extra_up(data, victim):
    data["components"]["vae"]["items"]["../../../victim"] = {}


def file_out(data, victim):
    data["files"]["tokenizers/../../../victim/new"] = {"bytes": 8, "sha256": "0" * 64}


def file_absolute(data, victim):
    data["files"][str(victim / "precious")] = {"bytes": 8, "sha256": "0" * 64}


def file_copied_in(data, victim):
    data["files"]["../victim/precious"] = {"bytes": 8, "sha256": "0" * 64}


MANIFESTS = [extra_item, extra_component, extra_up, file_out, file_absolute, file_copied_in]


@pytest.mark.parametrize("damage", MANIFESTS)
def test_manifests_that_are_calibrated(damage, floats, victim, tmp_path):
    source = tmp_path / "floats"
    shutil.copytree(floats, source, copy_function=os.link)
    data = json.loads((source / MANIFEST).read_text())
    data.pop("sha256", None)
    damage(data, victim)
    (source / MANIFEST).unlink()
    (source / MANIFEST).write_text(json.dumps(data))

    def gather(folder):
        return Gathered(random_samples())

    # Blocks are not what this is about.
    settings = {"described": {}, "dtype": np.float32, "progress": False}
    with pytest.raises(QsjaxError):
        calibrate_checkpoint(source, tmp_path / "out", gather, RECIPE, METHOD, **settings)
    assert not (tmp_path / "out").exists()
    assert b"precious" not in b"".join(
        path.read_bytes() for path in (tmp_path / "out.tmp").rglob("*.json") if path.is_file()
    )


def in_a_file(folder):
    (folder / "file").write_text("")
    return folder / "file" / "out"


def a_file_itself(folder):
    (folder / "out").write_text("mine")
    return folder / "out"


def long_name(folder):
    return folder / ("n" * 300)


def long_path(folder):
    return folder / "/".join(["n" * 200] * 30)


def own_folder(folder):
    return Path()


def parent(folder):
    return Path("..")


def root(folder):
    return Path("/")


def zero(folder):
    return folder / "a\0b"


def loop(folder):
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop" / "out"


def device(folder):
    return Path("/dev/full/out")


def kernel(folder):
    return Path("/proc/1/fd/out") if os.geteuid() else Path("/proc/new/out")


PLACES = [in_a_file, long_name, long_path, own_folder, parent, root, zero, loop, device, kernel]
WRITERS = {
    "convert": lambda place, floats: convert(Sources(transformer=floats.with_name("transformer")), place, progress=False),
    "export": lambda place, floats: export(floats, place, progress=False),
    "video": lambda place, floats: write_video(VIDEO, place),
    "sheet": lambda place, floats: write_contact_sheet([VIDEO], ["a"], place),
    "probe": lambda place, floats: check_writable(place, overwrite=False),
    "bytes": lambda place, floats: write_atomically(place, b"a"),
    "results": lambda place, floats: Results(place / "results", {}).add("a", {}),
    "lock": lambda place, floats: lock(place, doing="a", identity="b").__enter__(),
    "writer": lambda place, floats: CheckpointWriter(place, identity="b"),
}  # fmt: skip


@pytest.mark.parametrize("place", [*PLACES, a_file_itself])
@pytest.mark.parametrize("kind", WRITERS)
def test_places(kind, place, floats, tmp_path, monkeypatch):
    """Wherever it is: written there, or one sentence."""
    monkeypatch.chdir(tmp_path)
    where = place(tmp_path)
    before = {path for path in tmp_path.rglob("*") if not path.is_symlink()}
    if place is a_file_itself and kind not in ("convert", "export", "results", "writer"):
        return  # a file replaces a file
    if kind == "results" and place in (own_folder, parent, root):
        return
    with pytest.raises(InputError):
        WRITERS[kind](where, floats)
    after = {path for path in tmp_path.rglob("*") if not path.is_symlink()}
    assert {path.name for path in after - before} <= {"n" * 200}


@pytest.mark.parametrize("fps", [0, -5, 1001, 10**30])
def test_speeds(fps, tmp_path):
    with pytest.raises(InputError, match="frames per second from 1 to 1000"):
        write_video(VIDEO, tmp_path / "a.mp4", fps=fps)
    assert not list(tmp_path.iterdir())
