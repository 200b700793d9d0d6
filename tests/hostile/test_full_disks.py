"""Every write path on a disk that is full: one sentence, nothing half under a final name, and done when there is room again."""

import contextlib
import json
import os

import numpy as np
import pytest
from calibration.calibration_models import METHOD, RECIPE, random_checkpoint, random_samples
from small_disk import fill

from convert import Sources, convert, export
from convert.verification import verify
from qsjax.calibration import Gathered
from qsjax.calibration.boundary import Boundary
from qsjax.calibration.checkpoint import calibrate_checkpoint
from qsjax.calibration.samples import stored
from qsjax.calibration.tuning_store import TuningState, TuningStore
from qsjax.checkpoint import CheckpointWriter
from qsjax.disk import DiskError, replacing, require_room, write_atomically, writing
from qsjax.errors import InputError
from qsjax.evaluate.plots import bars
from qsjax.experiments.results import Results
from qsjax.video import check_writable, write_contact_sheet, write_video

NOISE = np.random.default_rng(0).integers(0, 255, (9, 128, 128, 3), np.uint8)


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """A small float checkpoint; the files that it was made from are beside it."""
    return random_checkpoint(tmp_path_factory.mktemp("floats"))


def names(disk):
    return {path.relative_to(disk).as_posix() for path in disk.rglob("*")} - {"somebody's"}


def results(place):
    Results(place, {"model": "a"}).add("row", {"values": [0.5] * 50_000})


def tuning(place):
    place.mkdir(exist_ok=True)
    big = np.zeros(200_000, np.float32)
    TuningStore(place / "tuning.npz").offer(TuningState({"a": big}, {}, [1.0]), last=True)


def boundary(place):
    place.mkdir(exist_ok=True)
    made = Boundary.empty([(2, 500, 64), (2, 50, 64)], np.float32, place, "float-0")
    made.commit(place, "float-0")


def samples(place):
    place.mkdir(exist_ok=True)
    stored(place, lambda: random_samples(count=20, length=500))


WRITERS = {
    "bytes": ("a.bin", lambda place: write_atomically(place, bytes(500_000))),
    "video": ("a.mp4", lambda place: write_video(NOISE, place)),
    "sheet": ("a.png", lambda place: write_contact_sheet([NOISE], ["noise"], place)),
    "plot": (
        "a.png",
        lambda place: bars({f"row {n}": np.arange(5.0)[None] for n in range(90)}, place),
    ),
    "results": ("a", results),
    "samples": ("a", samples),
    "state of tuning": ("a", tuning),
    "activations": ("a", boundary),
}
FINAL = {"results": "a/results.jsonl", "samples": "a/samples.npz", "state of tuning": "a/tuning.npz", "activations": "a/float-0.img.npy"}  # fmt: skip


@pytest.mark.parametrize("left", [0, 4096, 16_384])
@pytest.mark.parametrize("kind", WRITERS)
def test_files(kind, left, small_disk):
    name, write = WRITERS[kind]
    fill(small_disk, left)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        write(small_disk / name)
    # A folder may be there, and a file that has no name yet; nothing that says it is one.
    assert {one for one in names(small_disk) if not one.endswith(".tmp")} <= {"a"}
    (small_disk / "somebody's").unlink()
    write(small_disk / name)
    assert (small_disk / FINAL.get(kind, name)).stat().st_size > 16_384
    assert not [one for one in names(small_disk) if one.endswith(".tmp")]


@pytest.mark.parametrize("kind", ["bytes", "video", "sheet", "plot"])
def test_the_old_file_stays(kind, small_disk):
    name, write = WRITERS[kind]
    (small_disk / name).write_bytes(b"old")
    fill(small_disk, 8192)
    with pytest.raises(InputError, match="No space left"):
        write(small_disk / name)
    assert (small_disk / name).read_bytes() == b"old"
    assert names(small_disk) == {name}


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("left", [0, 8192, 65_536, 262_144, 400_000])
def test_conversion(left, looks, floats, small_disk, monkeypatch):
    """Where nobody looks for room, as with a quota, TensorStore says RESOURCE_EXHAUSTED, from several threads."""
    source, out = Sources(transformer=floats.with_name("transformer")), small_disk / "out"
    fill(small_disk, left)
    with pytest.raises(InputError, match=r"needs [\d.]+ kB|No space left"):
        convert(source, out, progress=False)
    # The room that was there when it began is somebody else's by the time that it is needed.
    monkeypatch.setattr("convert.stream.require_room_for", lambda *_: None)
    if not looks:
        monkeypatch.setattr("qsjax.checkpoint.storing.free_bytes", lambda *_: None)
    with pytest.raises(InputError, match=r"out: cannot be written \(No space left on device\)"):
        convert(source, out, progress=False)
    assert not out.exists()
    (small_disk / "somebody's").unlink()
    convert(source, out, progress=False)
    assert names(small_disk) >= {"out/manifest.json"}
    assert {path.name for path in small_disk.iterdir()} == {"out"}
    verify(out, source, progress=False)


@pytest.mark.parametrize("left", [0, 16_384, 262_144])
def test_export(left, floats, small_disk, monkeypatch):
    fill(small_disk, left)
    with pytest.raises(InputError, match=r"needs [\d.]+ kB|No space left"):
        export(floats, small_disk / "out", progress=False)
    monkeypatch.setattr("convert.exporting.require_room", lambda *_: None)
    with pytest.raises(InputError, match="No space left"):
        export(floats, small_disk / "out", progress=False)
    assert names(small_disk) == set()
    (small_disk / "somebody's").unlink()
    export(floats, small_disk / "out", progress=False)


@pytest.mark.whole
@pytest.mark.parametrize("left", [0, 30_000, 130_000, 300_000])
def test_calibration(left, floats, small_disk):
    """Begun with too little room, and ended when there is some: with the bits of a run that never stopped."""

    def calibrate(out):
        def gather(folder):
            return Gathered(stored(folder, random_samples))

        calibrate_checkpoint(
            floats, out, gather, RECIPE, METHOD, described={}, dtype=np.float32, progress=False
        )
        return out

    fill(small_disk, left)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        calibrate(small_disk / "out")
    assert not (small_disk / "out").exists()
    (small_disk / "somebody's").unlink()
    verify(calibrate(small_disk / "out"), progress=False)
    assert {path.name for path in small_disk.iterdir()} == {"out"}


def test_a_journal_and_a_manifest(small_disk, monkeypatch):
    """The disk is full when all weights are there."""
    writer = CheckpointWriter(small_disk / "out", identity="a" * 64)
    leaves = {"w": np.ones((4, 4), np.float32)}
    write = CheckpointWriter._enter
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "_enter", lambda *a: (fill(small_disk, 0), write(*a)))
        with pytest.raises(DiskError, match="out: cannot be written"):
            writer.write_item("dit", "a", leaves)
    assert writer.finished_items() == {}
    (small_disk / "somebody's").unlink()
    writer.write_item("dit", "a", leaves)
    fill(small_disk, 0)
    data = {"components": {"dit": {"config": {"note": "x" * 9000}}}}
    with pytest.raises(DiskError, match="out: cannot be written"):
        writer.finish(json.loads(json.dumps(data)), {"dit": ["a"]})
    assert not (small_disk / "out").exists()
    (small_disk / "somebody's").unlink()
    writer.finish(data, {"dit": ["a"]})
    assert (small_disk / "out").is_dir()


def test_room_is_looked_at_before_a_video_is_sampled(small_disk):
    fill(small_disk, 8192)
    with pytest.raises(InputError, match=r"needs 14\.9 MB, [\d.]+ k?B are free"):
        check_writable(small_disk / "a.mp4", overwrite=False, pixels=129 * 720 * 1280)
    check_writable(small_disk / "a.mp4", overwrite=False)
    require_room(small_disk / "new" / "folder", 4096)
    assert names(small_disk) == set()
    require_room(small_disk / ("n" * 300), 1 << 60)  # nobody knows; the work will say it


STATUSES = {
    "RESOURCE_EXHAUSTED: Error writing [os_error_code='28']": "No space left on device",
    "PERMISSION_DENIED: [os_error_code='13']": "Permission denied",
    "RESOURCE_EXHAUSTED: quota": "RESOURCE_EXHAUSTED: quota",
    "OUT_OF_RANGE: Cannot read range": "OUT_OF_RANGE: Cannot read range",
}


@pytest.mark.parametrize("text", STATUSES)
def test_errors_of_tensorstore(text, tmp_path):
    with pytest.raises(DiskError) as raised, writing(tmp_path):
        raise ValueError(text)
    assert raised.value.reason == STATUSES[text]


def test_other_errors_are_no_disks(tmp_path):
    for error in (ValueError("shapes differ"), InputError("not a video"), KeyError("a")):
        with pytest.raises(type(error)) as raised, writing(tmp_path, nbytes=1):
            raise error
        assert raised.value is error
    with pytest.raises(DiskError, match="No space left"), writing(tmp_path, nbytes=1 << 60):
        raise ValueError("whatever a library makes of it")


def test_two_writers_of_a_file(tmp_path):
    """The one that began first does not give the name to what the other one is writing."""

    def both():
        with replacing(tmp_path / "a") as first:
            first.write_bytes(b"first")
            with replacing(tmp_path / "a") as second:
                second.write_bytes(b"second")

    with pytest.raises(InputError, match="another process writes the same file"):
        both()
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"second"


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with contextlib.suppress(KeyboardInterrupt), replacing(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
