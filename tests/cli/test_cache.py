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
jax.jit(lambda x: x + 1)(1.0)
"""


def run(**environment):
    kept = {
        name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=kept | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Path(line) for line in done.stdout.split()]


def test_programs_are_kept_in_the_users_cache(tmp_path):
    said, used = run(QSJAX_CACHE=str(tmp_path))
    assert said == used
    assert said.parent == tmp_path / "programs"
    assert any(said.iterdir())


def test_a_place_that_the_user_has_named_is_used(tmp_path):
    assert run(QSJAX_CACHE=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == [tmp_path / "mine"] * 2  # fmt: skip
    # As in this process, whose tests have a place of their own.
    assert str(keep_programs()) == os.environ["JAX_COMPILATION_CACHE_DIR"]


def test_a_cache_that_cannot_be_written_is_one_of_this_process(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QSJAX_CACHE", str(tmp_path / "file" / "below"))
    assert cache_directory().is_dir()
    assert tmp_path not in cache_directory().parents
