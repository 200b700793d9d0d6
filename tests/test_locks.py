"""One process a place. The other process is a real one: locks of one process do not exclude each other's threads alike."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

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


def test_the_same_work_waits(tmp_path: Path) -> None:
    place, seen = tmp_path / "checkpoint", threading.Event()
    with _hold(place, "a") as process:

        def same() -> None:
            with lock(place, doing="convert", identity="a") as waited:
                assert waited
                seen.set()

        thread = threading.Thread(target=same)
        thread.start()
        assert not seen.is_set()
        process.communicate("\n")
        thread.join(60)
    assert seen.is_set()
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
