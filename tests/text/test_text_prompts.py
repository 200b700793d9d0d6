import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from qsjax.errors import InputError, QsjaxError
from qsjax.text import EncodedPrompt, load_prompts, read_texts, save_prompts

TEXTS = ["a red circle", "größer\nblue"]


def _encoded(dtype=jnp.float32):
    random = np.random.default_rng(0)
    text, pooled = (random.standard_normal(shape).astype(dtype) for shape in [(2, 5, 4), (2, 3)])
    mask = np.arange(5)[None] < np.array([[5], [2]])
    return EncodedPrompt(*map(jnp.asarray, (text, mask, pooled)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, dtype):
    path, encoded = tmp_path / "prompts.safetensors", _encoded(dtype)
    save_prompts(path, encoded, TEXTS)
    loaded = load_prompts(path)
    assert isinstance(loaded, EncodedPrompt)
    assert loaded.text.dtype == loaded.pooled.dtype == dtype
    jax.tree.map(np.testing.assert_array_equal, loaded, encoded)
    assert read_texts(path) == TEXTS
    assert [entry.name for entry in tmp_path.iterdir()] == ["prompts.safetensors"]


def test_saving_needs_one_text_for_each_row_and_a_writable_place(tmp_path):
    with pytest.raises(InputError, match="1 texts were given for 2 encoded prompts"):
        save_prompts(tmp_path / "a", _encoded(), ["one"])
    with pytest.raises(InputError, match="cannot be written"):
        save_prompts(tmp_path / "no folder" / "a", _encoded(), TEXTS)


def _write(path, metadata=None, **changes):
    arrays = {
        k: np.asarray(v) for k, v in (_encoded()._asdict() | changes).items() if v is not None
    }
    values = {
        "format": "qsjax encoded prompts",
        "format_version": "1",
        "prompts": json.dumps(TEXTS),
    }
    save_file(arrays, path, {k: v for k, v in (values | (metadata or {})).items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooled": None}, "expected tensors text, mask, pooled, found 'mask, text'"),
        ({"extra": np.zeros(3)}, "found 'extra, mask, pooled, text'"),
        (
            {"text": np.zeros((2, 5, 4), np.int32)},
            "text has dtype 'I32', expected BF16 or F16 or F32",
        ),
        ({"mask": np.ones((2, 5), np.float32)}, "mask has dtype 'F32', expected BOOL"),
        ({"text": np.zeros((5, 4), np.float32)}, r"text has shape \(5, 4\), expected 3 axes"),
        ({"pooled": np.zeros((1, 3), np.float32)}, r"pooled has shape \(1, 3\)"),
        ({"text": np.zeros((2, 5, 0), np.float32)}, r"text has shape \(2, 5, 0\)"),
        ({"mask": np.ones((2, 4), bool)}, r"mask has shape \(2, 4\), text \(2, 5, 4\)"),
        (
            {"mask": np.array([[0, 1, 1, 1, 1]] * 2, bool)},
            "not a run of tokens followed by padding",
        ),
        (
            {"mask": np.array([[1, 0, 1, 0, 0]] * 2, bool)},
            "not a run of tokens followed by padding",
        ),
        ({"pooled": np.full((2, 3), np.nan, np.float32)}, "not finite"),
        ({"metadata": {"format": None}}, "not one of encoded prompts"),
        ({"metadata": {"format_version": "2"}}, "has format version 2, this qsjax reads up to 1"),
        ({"pooled": np.full((2, 3), 3e38, np.float32)}, "pooled holds numbers above 1e"),
        (
            {"text": np.zeros((2, 4097, 1), np.float32), "mask": np.ones((2, 4097), bool)},
            "4096 are the most",
        ),
        ({"text": np.zeros((2, 5, 4), np.float64)}, "text has dtype 'F64'"),
        ({"metadata": {"format_version": "9" * 5000}}, "not one of encoded prompts"),
        ({"metadata": {"prompts": "["}}, "is not usable JSON"),
        ({"metadata": {"prompts": "[" * 50_000 + "]" * 50_000}}, "is not usable JSON"),
        ({"metadata": {"prompts": "7"}}, "holds no list of prompts"),
        ({"metadata": {"prompts": None}}, "holds no list of prompts"),
        ({"metadata": {"prompts": '["one"]'}}, "expected 3 axes and 1 rows"),
    ],
)
def test_files_that_are_not_encoded_prompts_are_refused(tmp_path, changes, message):
    path = tmp_path / "prompts.safetensors"
    _write(path, **changes)
    with pytest.raises(QsjaxError, match=message):
        load_prompts(path)


def test_absent_and_truncated_files_are_refused(tmp_path):
    path = tmp_path / "prompts.safetensors"
    with pytest.raises(InputError, match="cannot be opened"):
        load_prompts(path)
    with pytest.raises(InputError, match="name a regular file"):
        load_prompts(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="name a regular file"):
        load_prompts(tmp_path / "pipe")
    save_prompts(path, _encoded(), TEXTS)
    whole = path.read_bytes()
    for size in (0, 5, 40, len(whole) - 3):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="cannot be read as encoded prompts"):
            load_prompts(path)
