"""Strictness for every test: no implicit dtype or rank promotion, no network, CPU only, fixed seeds."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# The first example of a shape compiles, so that times say nothing; the same examples in every run.
settings.register_profile("qsjax", deadline=None, derandomize=True)
settings.load_profile("qsjax")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """The bundled model, converted once a test session."""
    from convert import Sources, convert
    from convert.bundled import tiny_model_directory

    destination = tmp_path_factory.mktemp("tiny") / "checkpoint"
    convert(Sources.find(tiny_model_directory()), destination, progress=False)
    return destination
