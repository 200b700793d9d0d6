"""Versions of installed libraries, and which of them each report names."""

import importlib.metadata
from collections.abc import Iterable

EVALUATION = ("qsjax", "jax", "flax", "numpy")
CALIBRATION = ("qsjax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
CONVERSION = ("qsjax", "jax", "flax", "orbax-checkpoint", "numpy", "ml_dtypes")
SAMPLING = ("qsjax", "jax", "jaxlib", "libtpu", "flax", "numpy", "ml_dtypes", "tokenizers", "av")
KERNELS = ("qsjax", "jax", "jaxlib", "libtpu")
EVERYTHING = (
    "qsjax", "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy", "ml_dtypes",
    "transformers", "tokenizers", "huggingface_hub", "jax-triton", "torch", "diffusers",
)  # fmt: skip


def versions(libraries: Iterable[str]) -> dict[str, str | None]:
    """Library -> its version; None where it is not installed."""
    return {name: _version(name) for name in libraries}


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
