"""The optimized HLO of a program, also where the compiler is newer than jaxlib."""

import tempfile
from pathlib import Path

import jax

_WRITTEN = "*.after_codegen.txt"


def compiled_text(lowered: jax.stages.Lowered) -> str:
    """Compile for a TPU and return the program's text.

    jaxlib parses the program that it gets back. What a newer libtpu makes it cannot always parse; then the text is read from the
    file that the compiler itself has written.

    Raises:
        jax.errors.JaxRuntimeError: the program does not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            return lowered.compile(options).as_text() or ""
        except jax.errors.JaxRuntimeError:
            files = sorted(Path(folder).glob(_WRITTEN), key=lambda file: file.stat().st_size)
            if not files:
                raise
            return files[-1].read_text(encoding="utf-8")
