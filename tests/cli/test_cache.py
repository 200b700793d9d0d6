"""What the command line keeps between runs."""

import os
import subprocess
import sys
from pathlib import Path

from qsjax.cache import cache_directory, keep_programs

SCRIPT = """
from qsjax.cache import keep_programs
print(keep_programs())
import jax
print(jax.config.jax_compilation_cache_dir)
jax.monitoring.register_event_listener(
    lambda event, **_: print(event) if event.startswith("/jax/compilation_cache/cache_") else None
)
jax.jit(lambda x: x + 1)(1.0)
"""
MISS, HIT = (f"/jax/compilation_cache/cache_{kind}" for kind in ("misses", "hits"))


def run(**environment):
    ours = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said, used, *events = done.stdout.split()
    return Path(said), Path(used), set(events)


def test_small_programs_too_are_kept_in_the_users_cache(tmp_path):
    said, used, events = run(QSJAX_CACHE=str(tmp_path))
    assert said == used
    assert said.parent == tmp_path / "programs"
    assert events == {MISS}
    assert run(QSJAX_CACHE=str(tmp_path)) == (said, used, {HIT})


def test_a_place_that_the_user_has_named_is_used(tmp_path):
    mine = tmp_path / "mine"
    said, used, _ = run(QSJAX_CACHE=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(mine))
    assert said == used == mine
    # As in this process, whose tests have a place of their own.
    assert str(keep_programs()) == os.environ["JAX_COMPILATION_CACHE_DIR"]


def test_a_cache_that_cannot_be_written_is_one_of_this_process(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QSJAX_CACHE", str(tmp_path / "file" / "below"))
    assert cache_directory().is_dir()
    assert tmp_path not in cache_directory().parents
