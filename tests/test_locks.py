"""One process a place. The other process is a real one: locks of one process do not exclude each other's threads alike."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qsjax import locks
from qsjax.errors import InputError
from qsjax.locks import lock

HOLDER = """
import sys
from pathlib import Path
from qsjax.locks import lock
with lock(Path(sys.argv[1]), doing="convert", identity=sys.argv[2]) as waited:
    print("held", waited, flush=True)
    sys.stdin.readline()
"""


def _hold(place: Path, identity: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place), identity],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("held")
    return process


def test_another_work_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    place = tmp_path / "new" / "checkpoint"
    with _hold(place, "a") as process:
        named = rf"process {process.pid} on .*convert.* is at work there"
        with (
            pytest.raises(InputError, match=named),
            lock(place, doing="calibrate", identity="b"),
        ):
            raise AssertionError
        process.communicate("\n")
    with lock(place, doing="calibrate", identity="b") as waited:
        assert not waited
        assert place.with_name("checkpoint.lock").exists()
    assert not list(place.parent.iterdir())


def test_the_same_work_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, waiting, seen = tmp_path / "checkpoint", threading.Event(), list[bool]()

    def wait(descriptor: int, wait=locks._wait) -> None:
        waiting.set()
        wait(descriptor)

    def same() -> None:
        with lock(place, doing="convert", identity="a") as waited:
            seen.append(waited)

    monkeypatch.setattr(locks, "_wait", wait)
    with _hold(place, "a") as process:
        thread = threading.Thread(target=same)
        thread.start()
        assert waiting.wait(60)  # for the holder, which has not been told to let go
        assert not seen
        process.communicate("\n")
        thread.join(60)
    assert seen == [True]
    assert not list(tmp_path.iterdir())


def test_death_releases(tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"
    with _hold(place, "a") as process:
        process.kill()
    with lock(place, doing="convert", identity="b"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_says_nothing_is_somebodys(tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"
    with _hold(place, "a") as process:
        place.with_name("checkpoint.lock").write_bytes(b"\xff{" * 100)
        with (
            pytest.raises(InputError, match="another process is at work there"),
            lock(place, doing="convert", identity="a"),
        ):
            raise AssertionError
        process.communicate("\n")


def test_a_file_system_without_locks_warns(tmp_path: Path, monkeypatch, caplog) -> None:
    import qsjax.locks

    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(qsjax.locks.fcntl, "flock", none)
    with lock(tmp_path / "checkpoint", doing="convert", identity="a") as waited:
        assert not waited
    assert "has no locks" in caplog.text


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="cannot be written"),
        lock(tmp_path / "file" / "checkpoint", doing="convert", identity="a"),
    ):
        raise AssertionError


def test_a_file_of_that_name_which_is_no_lock_stays(tmp_path: Path) -> None:
    (tmp_path / "poetry.lock").write_text("[[package]]")
    with (
        pytest.raises(InputError, match="in the way and no lock"),
        lock(tmp_path / "poetry", doing="convert", identity="a"),
    ):
        raise AssertionError
    assert (tmp_path / "poetry.lock").read_text() == "[[package]]"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "checkpoint.lock").symlink_to(tmp_path / "victim")
    with (
        pytest.raises(InputError, match="cannot be written"),
        lock(tmp_path / "checkpoint", doing="convert", identity="a"),
    ):
        raise AssertionError
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("left", [b"", b"\0" * 99, b'{"process": 1, "identity": "other"}'])
def test_what_a_dead_process_has_left_is_taken_over(left: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.lock").write_bytes(left)
    with lock(tmp_path / "checkpoint", doing="convert", identity="a") as waited:
        assert not waited
    assert not list(tmp_path.iterdir())


def test_who_has_not_written_its_name_yet_is_asked_again(tmp_path: Path, monkeypatch) -> None:
    """A holder takes the lock first and then says who it is; between the two nobody is refused."""
    import qsjax.locks

    place, pauses = tmp_path / "checkpoint", []
    with _hold(place, "a") as process:
        path = place.with_name("checkpoint.lock")
        written = path.read_bytes()
        path.write_bytes(b"")

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            path.write_bytes(written)
            process.communicate("\n")

        monkeypatch.setattr(qsjax.locks.time, "sleep", pause)
        with lock(place, doing="convert", identity="a"):
            pass
    assert len(pauses) == 1
