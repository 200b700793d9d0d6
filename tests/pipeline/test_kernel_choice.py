"""Which implementation of an operation runs: chosen by a caller, down to every call, or refused in one sentence."""

from dataclasses import fields
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from convert import Sources, convert
from convert.bundled import tiny_model_directory
from pallas_kernels import Kernels
from pallas_kernels.dispatch import Operation
from qsjax.cli import main
from qsjax.cli.kernels import _KEYS
from qsjax.dit import load_dit
from qsjax.dit.kernels import OPERATIONS, checked_kernels
from qsjax.errors import InputError
from qsjax.sample import denoise_step, empty_cache, prepare, schedule
from qsjax.sample.loop import step_at
from qsjax.settings import SamplingPlan, SparsePlan, Sparsity
from qsjax.text import EncodedPrompt

NAMES = {
    "attention": "xla_chunked",
    "sparse_attention": "reference",
    "matmul": "reference",
    "quantize": "reference",
    "rotary": "reference",
}
PLAN = SamplingPlan(
    steps=4, sparse=SparsePlan(sparsity=Sparsity(density=0.5), dense_steps=2, dense_layers=(1,))
)


@pytest.fixture(scope="module")
def w4a8(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels") / "checkpoint"
    convert(Sources.find(tiny_model_directory()), folder, quantize="rtn-w4a8", progress=False)
    return folder


def test_a_choice_reaches_every_call(w4a8, monkeypatch):
    asked = set()
    choose = Operation.choose

    def spy(self, implementation="auto", **facts):
        asked.add((self.name, implementation))
        return choose(self, implementation, **facts)

    monkeypatch.setattr(Operation, "choose", spy)
    dit = load_dit(w4a8, dtype=jnp.float32, kernels=NAMES)
    config, shape = dit.config, (1, dit.config.in_channels, 2, 8, 8)
    prompt = EncodedPrompt(
        jax.ShapeDtypeStruct((1, 8, config.text_dim), jnp.float32),
        jax.ShapeDtypeStruct((1, 8), jnp.bool_),
        jax.ShapeDtypeStruct((1, config.pooled_dim), jnp.float32),
    )
    conditions = jax.eval_shape(partial(prepare, PLAN), dit, prompt, None)
    cache = jax.eval_shape(lambda d, c: empty_cache(PLAN, d, shape, c), dit, conditions)
    for kind in ("dense", "refresh", "sparse"):
        asked.clear()
        step = partial(denoise_step, PLAN, kind)
        latents = jax.ShapeDtypeStruct(shape, jnp.float32)
        jax.eval_shape(step, dit, latents, cache, step_at(schedule(PLAN), 0), conditions)
        everywhere = ("attention", "matmul", "quantize", "rotary")
        layers = {(OPERATIONS[key].name, NAMES[key]) for key in everywhere}
        lists = {("block_sparse_attention", "reference")}
        assert asked == (layers if kind == "dense" else layers | lists)


def test_the_options_are_the_operations():
    assert list(_KEYS) == [field.name for field in fields(Kernels)] == list(OPERATIONS)
    for key, operation in OPERATIONS.items():
        assert set(operation.implementations) == set(_KEYS[key].partition(": ")[2].split(", "))
    assert checked_kernels(None) == Kernels()
    assert checked_kernels({"matmul": "tpu@v5e"}) == Kernels(matmul="tpu@v5e")


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        ({"matmull": "xla"}, "no operation 'matmull'; did you mean 'matmul'"),
        ({"matmul": "xlaa"}, "quantized_matmul has no implementation 'xlaa'; did you mean 'xla'"),
        ({"quantize": "tpu@v9"}, "no target 'v9'"),
    ],
)
def test_names_that_are_none_are_refused(kernels, message):
    with pytest.raises(InputError, match=message):
        checked_kernels(kernels)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (("--kernels.matmul", "tpu"), "quantized_matmul cannot be computed as asked: tpu needs a TPU"),
        (("--kernels.attention", "cudnn"), "dense_attention cannot be computed as asked: cudnn needs"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_one_sentence(w4a8, option, reason, tmp_path, capsys):
    size = ("--frames", "5", "--height", "32", "--width", "32", "--steps", "2")
    words = ("sample", "--model", str(w4a8), "--prompt", "a", *size, *option)
    assert main([*words, "--out", str(tmp_path / "out.mp4")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    (error,) = said
    assert reason in error
    assert "those that can: auto, " in error
    assert not (tmp_path / "out.mp4").exists()
