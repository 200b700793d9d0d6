"""What is missing ends the suite with a sentence that says so, in place of workers that die one after the other."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import preflight
import pytest

FOLDER = Path(__file__).parent
DIES = "import os, signal\n\nos.kill(os.getpid(), signal.SIGKILL)\n\ndef test_one():\n    pass\n"
DIES_SECOND = "def test_one():\n    pass\n\n\ndef test_two():\n    import os, signal\n\n    os.kill(os.getpid(), signal.SIGKILL)\n"
STARTS_JAX = "import jax\n\ndef test_one():\n    jax.devices()\n"


def run(folder, test, flags=""):
    """A suite of one test on one worker, with nothing of this suite but its preflight."""
    (folder / "test_one.py").write_text(test)
    (folder / "pytest.ini").write_text("[pytest]\n")
    options = ["-p", "preflight", "-n", "1", "--dist", "loadfile"]
    command = [sys.executable, "-m", "pytest", *options, "test_one.py"]
    environment = os.environ | {"PYTHONPATH": str(FOLDER), "XLA_FLAGS": flags}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )  # fmt: skip


def test_a_flag_that_jaxlib_does_not_know(tmp_path):
    done = run(tmp_path, STARTS_JAX, "--xla_no_such_flag=1")
    assert done.returncode == 3
    (sentence,) = [line for line in done.stdout.splitlines() if "worker gw0 died" in line]
    assert "JAX does not start: Unknown flag in XLA_FLAGS: --xla_no_such_flag=1" in sentence
    assert done.stdout.count("node down") == 1


def test_a_worker_that_dies(tmp_path):
    done = run(tmp_path, DIES)
    assert done.returncode == 3
    (sentence,) = [line for line in done.stdout.splitlines() if "worker gw0 died" in line]
    assert "run `pytest -n 0` to see its last words" in sentence


def test_a_test_that_ends_its_worker(tmp_path):
    done = run(tmp_path, DIES_SECOND)
    assert done.returncode == 1
    (sentence,) = [line for line in done.stdout.splitlines() if "ended its worker" in line]
    assert "run `pytest -n 0 test_one.py::test_two` to see its last words" in sentence
    assert "1 failed, 1 passed" in done.stdout
    assert done.stdout.count("node down") == 1


@pytest.mark.parametrize(("system", "needed"), [("Linux", True), ("Darwin", False)])
def test_a_compiler_that_is_not_there(monkeypatch, system, needed):
    find = importlib.util.find_spec
    monkeypatch.setattr(preflight.platform, "system", lambda: system)
    monkeypatch.setattr(preflight.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name)
    )
    whole, named = pytest.Config.ArgsSource.TESTPATHS, pytest.Config.ArgsSource.ARGS
    preflight.pytest_configure(SimpleNamespace(args_source=named))
    preflight.pytest_configure(SimpleNamespace(args_source=whole, workerinput={}))
    if needed:
        with pytest.raises(pytest.UsageError, match="libtpu is not installed"):
            preflight.pytest_configure(SimpleNamespace(args_source=whole))
    else:
        preflight.pytest_configure(SimpleNamespace(args_source=whole))
