"""A program's text, from jaxlib or, where that cannot read it, from the compiler's own file."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from pallas_kernels.deviceless import device, missing
from pallas_kernels.targets import TARGETS
from qsjax.bench.hlo_text import compiled_text

V5E = TARGETS["v5e"]
pytestmark = pytest.mark.skipif(missing(V5E) is not None, reason="libtpu is not installed")


def lowered():
    sharding = SingleDeviceSharding(device(V5E))
    x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=sharding)
    return jax.jit(lambda x: jnp.sin(x @ x)).lower(x)


def refuse(*_):
    raise jax.errors.JaxRuntimeError("RET_CHECK failure: 1 operand was expected")


def sorted_configs(text):
    """The text with the keys of every backend_config in order: two prints of one program order them differently."""
    first, *parts = text.split("backend_config=")
    decode = json.JSONDecoder().raw_decode
    found = [(decode(part), part) for part in parts]
    return first + "".join(
        json.dumps(config, sort_keys=True) + part[end:] for (config, end), part in found
    )


def test_both_texts_are_the_same(monkeypatch):
    program = lowered()
    text = compiled_text(program)
    assert "ENTRY" in text
    monkeypatch.setattr(jax.stages.Compiled, "as_text", refuse)
    assert sorted_configs(compiled_text(program)) == sorted_configs(text)


def test_a_program_that_does_not_compile_is_an_error(monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    with pytest.raises(jax.errors.JaxRuntimeError, match="1 operand was expected"):
        compiled_text(lowered())
