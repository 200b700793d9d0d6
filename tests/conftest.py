"""For every test: no implicit dtype or rank promotion, no network, CPU only, fixed seeds, and compilation that is quick.

The suite compiles some thousands of small programs and runs most of them once or twice: the compiler is told to optimize
little, and what one process has compiled the others read. Where JAX_COMPILATION_CACHE_DIR names a folder, the next run
reads it too.
"""

import atexit
import gc
import os
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# For workers, which are started with it: the compiler's many small pieces are not merged at each large one that goes,
# which is four hundredths of the suite.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.mxfast=0")

import jax
import pytest
from hypothesis import settings

pytest_plugins = ["preflight", "small_disk", "videos"]

# Read when the first array is made. Threads that share a program's code among them cost more than a small program has.
_FLAGS = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):
    # The quick emitters of fusions, which jaxlib 0.11 no longer has: it ends a process that asks for them.
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # The workers of pytest-xdist inherit it; the process that made the folder deletes it when it ends.
    _programs = tempfile.TemporaryDirectory(prefix="qsjax-programs-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)
# A compiler would else be told each operation's callers, a hundred of them, most of which are pytest's.
jax.config.update("jax_traceback_in_locations_limit", 0)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
# Tracing makes many small objects that live; to look through all of them every 700 would take a tenth of the suite's time.
gc.set_threshold(50_000, 20, 50)
# The first example of a shape compiles, so that times say nothing; the same examples in every run.
settings.register_profile("qsjax", deadline=None, derandomize=True)
settings.load_profile("qsjax")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Between files a process that holds many programs lets them go: one that has no memory mapping left is ended."""
    from qsjax.evaluate.mappings import forget_programs

    if nextitem is None or nextitem.path != item.path:
        forget_programs()


def pytest_sessionfinish(session):
    """A worker ends at once, when it has told its results, and does not take its programs and arrays apart one by one.

    What coverage has measured is written before.
    """
    coverage = sys.modules.get("coverage")
    if coverage is not None and (measuring := coverage.Coverage.current()) is not None:
        measuring.save()
    if hasattr(session.config, "workerinput"):
        atexit.register(os._exit, 0)


def pytest_collection_finish():
    """What the imports made stays; nobody need look through it again."""
    gc.freeze()


def pytest_collection_modifyitems(items):
    """The files that take minutes first: the last worker would else run them alone (the sort keeps all other order)."""
    first = ("test_compression_signals.py", "test_whole_runs.py")
    items.sort(key=lambda item: item.path.name not in first)


@pytest.fixture
def optimized():
    """Compile as users do: for tests that look at what the compiler made."""
    callers = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_traceback_in_locations_limit", 100)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_traceback_in_locations_limit", callers)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """The bundled model, converted once a test session."""
    from convert import Sources, convert
    from convert.bundled import tiny_model_directory

    destination = tmp_path_factory.mktemp("tiny") / "checkpoint"
    convert(Sources.find(tiny_model_directory()), destination, progress=False)
    return destination
