"""Strictness for every test: no implicit dtype or rank promotion, no network, CPU only, fixed seeds."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """The bundled model, converted once a test session."""
    from convert import Sources, convert
    from convert.bundled import tiny_model_directory

    destination = tmp_path_factory.mktemp("tiny") / "checkpoint"
    convert(Sources.find(tiny_model_directory()), destination, progress=False)
    return destination
