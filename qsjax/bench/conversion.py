"""A conversion at full size, of a source made here: seconds against plain reading of the disk, and peak memory."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.containers import TensorInfo, write_sharded
from convert.keymaps import expand
from qsjax.dit import DiTConfig
from qsjax.errors import InputError, QsjaxError
from qsjax.progress import Progress

_BLOCK = 8 << 20
_DTYPE = np.dtype(ml_dtypes.bfloat16)
_TINY, _BINADES = 0x3400, 8
"""Bits of the smallest exponent that is made (2^-23), and how many above it: no infinities, no NaN."""


def write_source(config: DiTConfig, folder: Path, *, seed: int = 0, progress: bool = True) -> int:
    """A transformer of random bfloat16 as diffusers stores it: shards, index, config.json. One tensor is held at a time.

    Args:
        config: sizes.
        folder: to appear.
        seed: of the numbers.
        progress: show a bar.

    Returns:
        Bytes of its tensors.
    """
    shapes = {
        name: shape
        for row in expand("dit", config, "diffusers")
        for name, shape in row.sources.items()
    }
    tensors = {name: TensorInfo(shape, _DTYPE) for name, shape in shapes.items()}
    total = sum(info.nbytes for info in tensors.values())
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    with Progress(total, "make source", unit="B", enabled=progress) as bar:

        def read(name: str) -> np.ndarray:
            info = tensors[name]
            bits = random.integers(0, 1 << 16, int(np.prod(info.shape)), np.uint16)
            # Sign and mantissa are random; the exponent is one of a few.
            bits = (bits & 0x807F) | (((bits >> 7) & (_BINADES - 1)) << 7) + _TINY
            bar.advance(info.nbytes)
            return bits.astype(np.uint16, copy=False).view(_DTYPE).reshape(info.shape)

        write_sharded(folder, "diffusion_pytorch_model", tensors, read)
    content = json.dumps(config.to_diffusers(), indent=2)
    (folder / "config.json").write_text(content, encoding="utf-8")
    return total


def bench(
    config: DiTConfig, parent: Path, *, quantize: str | None = "rtn-w4a8", progress: bool = True
) -> dict[str, Any]:
    """Make a source, read it, convert it by the command line in a process of its own; all of it is deleted afterwards.

    Args:
        config: sizes.
        parent: where a folder for source and result may be made.
        quantize: as `qsjax convert --quantize`; None stores bfloat16.
        progress: show bars.

    Returns:
        The report: bytes, seconds, rates in bytes a second, and the peak of the process's resident memory (VmHWM).

    Raises:
        InputError: the folder cannot be written.
        QsjaxError: the conversion failed.
    """
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix="qsjax-bench-") as folder:
            return _bench(config, Path(folder), quantize, progress)
    except OSError as error:
        raise InputError(
            f"{parent}: cannot be written ({error.strerror}); name a folder with room for source and result"
        ) from error


def _bench(config: DiTConfig, work: Path, quantize: str | None, progress: bool) -> dict[str, Any]:
    source, out = work / "transformer", work / "checkpoint"
    start = time.perf_counter()
    tensors = write_source(config, source, progress=progress)
    made = time.perf_counter() - start
    files = sorted(source.glob("*.safetensors"))
    _forget(files)
    read = sum(len(block) for path in files for block in _blocks(path))
    reading = time.perf_counter() - start - made
    _forget(files)
    options = [] if quantize is None else ["--quantize", quantize]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "convert", str(source), str(out), *options, "--json"],
        stdout=subprocess.PIPE,
        stderr=None if progress else subprocess.DEVNULL,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise QsjaxError(
            f"the conversion ended with status {done.returncode}; its message is above"
        )
    report = json.loads(done.stdout)
    stored = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "hardware": {"cores": os.cpu_count(), "machine": platform.machine()},
        "quantize": quantize,
        "tensor_bytes": tensors,
        "source_bytes": read,
        "stored_bytes": stored,
        "peak_memory_bytes": report["peak_memory_bytes"],
        "seconds": {"make source": made, "read": reading, "convert": seconds},
        "read_rate": read / reading,
        "convert_rate": read / seconds,
    }


def text(report: dict[str, Any]) -> str:
    """The report in lines."""
    seconds = report["seconds"]
    return "\n".join(
        (
            f"source {report['source_bytes'] / 1e9:.2f} GB of bfloat16, made in {seconds['make source']:.0f} s",
            f"read   {seconds['read']:.1f} s, {report['read_rate'] / 1e6:.0f} MB/s: the files once, in blocks of 8 MB, not in the page cache",
            f"convert {report['quantize'] or 'to bfloat16'}: {seconds['convert']:.1f} s, {report['convert_rate'] / 1e6:.0f} MB/s of source; "
            f"{report['stored_bytes'] / 1e9:.2f} GB written",
            f"peak memory {report['peak_memory_bytes'] / 1e9:.2f} GB (VmHWM)",
            f"{report['hardware']['cores']} cores, {report['hardware']['machine']}",
        )
    )


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            yield block


def _forget(files: list[Path]) -> None:
    """Take files out of the page cache, where the system can: the next read is the disk's."""
    if hasattr(os, "posix_fadvise"):
        for path in files:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
