"""A disk of four megabytes, to be full."""

import gc
import os
import subprocess

import pytest


@pytest.fixture(scope="session")
def _mounted(tmp_path_factory):
    place = tmp_path_factory.mktemp("small_disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        reason = None if done.returncode == 0 else done.stderr.strip()
    except OSError as error:
        reason = str(error)
    if reason is not None:
        pytest.skip(f"no small disk can be mounted here: {reason}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.fixture
def small_disk(_mounted):
    """An empty disk of 4 MB, and `fill(disk, left)` makes all but some bytes of it somebody else's."""
    from qsjax.disk import remove

    yield _mounted
    for path in _mounted.iterdir():
        remove(path)


def fill(disk, left):
    """Leave so many bytes, to the page."""
    gc.collect()  # a deleted file that a caught error still holds open would give its room back in between
    usage = os.statvfs(disk)
    free = usage.f_bavail * usage.f_frsize
    with (disk / "somebody's").open("ab") as file:
        file.write(bytes(max(0, free - left)))
