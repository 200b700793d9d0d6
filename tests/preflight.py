"""What the suite cannot go on without, in one sentence: a compiler that is not installed, a worker that died.

A plugin of pytest, which conftest.py takes part in; tests/test_preflight.py runs it alone.
"""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys

import pytest

_heard_of = set()
"""Workers that have sent a result."""


def missing_compiler():
    """The TPU's compiler comes with the test extra on Linux x86_64; elsewhere there is none, and its tests are skipped."""
    there = platform.system() != "Linux" or platform.machine() != "x86_64"
    if there or importlib.util.find_spec("libtpu"):
        return None
    return "libtpu is not installed, with which the kernels are compiled for a TPU: pip install '.[test]'"


def why_jax_does_not_start():
    """The last words of a process that does nothing but start JAX as the tests do; None where it starts."""
    code = "import jax; jax.devices()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    words = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return words.rpartition("] ")[2]  # without the logger's time and line


def pytest_configure(config):
    """A run of everything, `pytest` alone, needs everything; tests that are named may do with less."""
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if everything and not hasattr(config, "workerinput") and (sentence := missing_compiler()):
        raise pytest.UsageError(sentence)


def pytest_runtest_logreport(report):
    """Notes that a worker works."""
    _heard_of.add(getattr(report, "node", None))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Ends the run where every other worker would die like this one: JAX does not start, or there was no result yet."""
    why = why_jax_does_not_start() if error else None
    if not error or (why is None and node in _heard_of):
        return
    sentence = f"worker {node.gateway.id} died ({versions()}): "
    if why:
        sentence += (
            f"JAX does not start: {why}; XLA_FLAGS is '{os.environ.get('XLA_FLAGS', '').strip()}'"
        )
    else:
        sentence += "it gave no result before; run `pytest -n 0` to see its last words"
    pytest.exit(sentence, returncode=3)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem, report, sched):
    """Ends the run at a test that ends its worker: pytest-xdist gives it to one new worker after another, and may then hang.

    The test counts as failed, and the failures before it are printed.
    """
    sched.config.hook.pytest_runtest_logreport(report=report)
    sentence = f"{crashitem} ended its worker ({versions()}): "
    pytest.exit(f"{sentence}run `pytest -n 0 {crashitem}` to see its last words", returncode=1)


def versions():
    """What a crash may depend on: of Python, and of the packages that hold compilers."""
    found = [name for name in ("jaxlib", "libtpu") if importlib.util.find_spec(name)]
    packages = [f"{name} {importlib.metadata.version(name)}" for name in found]
    return ", ".join([f"Python {platform.python_version()}", *packages])
