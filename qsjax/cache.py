"""The user's cache: the converted tiny model, and what was compiled, so that it need not be compiled again."""

import hashlib
import os
import platform
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from qsjax.disk import writing


def cache_directory() -> Path:
    """`$QSJAX_CACHE`, else `$XDG_CACHE_HOME/qsjax`, else `~/.cache/qsjax`; made if it is not there.

    Where that cannot be written, a temporary folder of this process.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(os.environ.get("QSJAX_CACHE") or Path(home) / "qsjax")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # who has no home gets a RuntimeError
        return _temporary()
    return folder


@lru_cache(maxsize=1)
def _temporary() -> Path:
    """One folder a process; it is there for the next one to find only where the user keeps temporary files."""
    place = Path(tempfile.gettempdir())
    with writing(place):
        return Path(tempfile.mkdtemp(prefix="qsjax-"))


def keep_programs() -> Path:
    """Let JAX keep compiled programs on disk, unless the user has named a place for them; returns the place.

    The command line does so by itself. Programs for CPUs have a folder for each kind of CPU, since a home
    may be shared by several machines. JAX alone keeps only what took a second to compile; here all is kept, so that a
    second start compiles nothing.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    imported: ModuleType | None = sys.modules.get("jax")
    if imported is not None:
        chosen = imported.config.jax_compilation_cache_dir or chosen
    if not chosen:
        chosen = str(cache_directory() / "programs" / _processor())
        os.environ["JAX_COMPILATION_CACHE_DIR"] = (
            chosen  # read when JAX is imported, also by child processes
        )
        if imported is not None:
            imported.config.update("jax_compilation_cache_dir", chosen)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        if imported is not None:
            imported.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return Path(chosen)


def _processor() -> str:
    """A short name of this kind of processor: its architecture and a digest of what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    features = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    facts = "\n".join(dict.fromkeys(features)) or platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
