import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compilations import compilations
from flax import nnx
from text_checkpoints import CLIP_SMALL, LLAMA_SMALL, TEMPLATE, write_checkpoint
from text_oracles import our_llama, relative_error, torch_clip, torch_llama

import qsjax.text.encoder as encoder_module
from qsjax.errors import CheckpointError, InputError
from qsjax.text import Clip, Llama, PromptTokenizer, PromptTruncatedWarning, TextEncoder

PROMPTS = ["a red circle moves left", "blue square"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("text") / "checkpoint")


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return TextEncoder.load(checkpoint)


def test_prompts_are_encoded_as_the_pytorch_pipeline_does(encoder, checkpoint):
    encoded = encoder(PROMPTS)
    tokens = PromptTokenizer(checkpoint / "tokenizers" / "llama", length=12)(
        [TEMPLATE.fill(prompt) for prompt in PROMPTS]
    )
    words = PromptTokenizer(checkpoint / "tokenizers" / "clip", length=8)(PROMPTS)
    with torch.no_grad():
        states = torch_llama(LLAMA_SMALL)(
            torch.tensor(tokens.ids).long(),
            torch.tensor(tokens.mask).long(),
            output_hidden_states=True,
        ).hidden_states[-3]
        pooled = torch_clip(CLIP_SMALL)(torch.tensor(words.ids).long()).pooler_output
    mask = tokens.mask[:, TEMPLATE.crop_start :]
    np.testing.assert_array_equal(encoded.mask, mask)
    # The kept part of the second prompt is two words and the template's end, then padding.
    np.testing.assert_array_equal(np.asarray(encoded.mask)[1], np.arange(8) < 3)
    reference = states.numpy()[:, TEMPLATE.crop_start :]
    assert relative_error(np.asarray(encoded.text)[mask], reference[mask]) <= 1e-5
    assert relative_error(encoded.pooled, pooled.numpy()) <= 1e-5
    assert jax.tree.leaves(jax.tree.map(lambda leaf: leaf.shape[0], encoded)) == [2, 2, 2]


def test_whitespace_around_a_prompt_changes_nothing(encoder):
    plain, padded = encoder(PROMPTS), encoder(["\n " + prompt + " \n" for prompt in PROMPTS])
    jax.tree.map(np.testing.assert_array_equal, plain, padded)


def test_one_compilation_for_each_batch_size(encoder, checkpoint):
    encoder_module.encode.clear_cache()
    with compilations() as compiled:
        encoder(PROMPTS)
        encoder(["green", "a red square"])
        TextEncoder.load(checkpoint)(PROMPTS)
        assert compiled["encode"] == 1
        encoder(["green"])
        assert compiled["encode"] == 2


def test_long_prompts_are_cut_with_a_warning(encoder):
    prompt = "red green blue left right a circle moves red green"
    with pytest.warns(PromptTruncatedWarning) as caught:
        encoded = encoder([prompt, "red"])
    assert [str(warning.message).split(": ", 1)[1] for warning in caught] == [
        "its first 8 tokens were kept, 3 were dropped; shorten it",
        "its first 8 tokens were kept, 4 were dropped; shorten it",
    ]
    assert bool(encoded.mask[0].all())


def test_an_empty_prompt_is_the_template_alone(encoder):
    encoded = encoder(["", "red"])
    np.testing.assert_array_equal(np.asarray(encoded.mask).sum(axis=1), [1, 2])


def test_a_prompt_that_leaves_nothing_is_refused(checkpoint, encoder):
    template = dataclasses.replace(TEMPLATE, template="describe a\n{}")
    tokenizers = {
        "llama_tokenizer": encoder._llama_tokenizer,
        "clip_tokenizer": encoder._clip_tokenizer,
    }
    tokenizers["embed"] = encoder.embed
    bare = TextEncoder(encoder.llama, encoder.clip, template=template, **tokenizers)
    with pytest.raises(InputError, match="prompt ' ' gives the LLaMA text encoder no token"):
        bare([" "])


@pytest.mark.parametrize(
    ("prompts", "message"), [("red", "should be a list of texts"), ([], "no prompt was given")]
)
def test_what_is_not_a_list_of_prompts_is_refused(encoder, prompts, message):
    with pytest.raises(InputError, match=message):
        encoder(prompts)


def test_dtype_follows_the_checkpoint_unless_given(checkpoint, tmp_path):
    stored = TextEncoder.load(write_checkpoint(tmp_path / "bf16", dtype=jnp.bfloat16))
    asked = TextEncoder.load(checkpoint, dtype=jnp.bfloat16)
    for encoder in (stored, asked):
        leaves = jax.tree.leaves(nnx.state((encoder.llama, encoder.clip)))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}
    tokens = jnp.zeros((1, 12), jnp.int32)
    embedded = jnp.zeros((1, 12, LLAMA_SMALL.hidden_size), jnp.bfloat16)
    inputs = (stored.llama, stored.clip, embedded, tokens == 0, tokens[:, :8])
    encoded = jax.eval_shape(lambda: encoder_module.encode(*inputs, crop_start=4))
    assert encoded.text.dtype == encoded.pooled.dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_of_the_embedding_are_gathered_on_the_host(checkpoint, dtype):
    """The table is not among the model's parameters; states are those of the model that has it, to the bit."""
    encoder = TextEncoder.load(checkpoint, dtype=dtype)
    assert not hasattr(encoder.llama, "embed")
    whole = our_llama(torch_llama(LLAMA_SMALL), LLAMA_SMALL, dtype=dtype)
    parts = {
        "llama_tokenizer": encoder._llama_tokenizer,
        "clip_tokenizer": encoder._clip_tokenizer,
        "template": TEMPLATE,
    }
    ids = encoder._llama_tokenizer([TEMPLATE.fill(prompt) for prompt in PROMPTS]).ids
    np.testing.assert_array_equal(encoder.embed(ids).astype(dtype), whole.embed(jnp.asarray(ids)))
    expected = TextEncoder(whole, encoder.clip, **parts)(PROMPTS)
    jax.tree.map(np.testing.assert_array_equal, encoder(PROMPTS), expected)
    with pytest.raises(InputError, match="no table of embeddings"):
        TextEncoder(encoder.llama, encoder.clip, **parts)


def test_mismatched_parts_are_refused(checkpoint, encoder, tmp_path):
    llama_tokenizer = encoder._llama_tokenizer
    parts = {"template": TEMPLATE, "llama_tokenizer": llama_tokenizer}
    parts["clip_tokenizer"] = encoder._clip_tokenizer
    small = dataclasses.replace(LLAMA_SMALL, vocab_size=10)
    llama = nnx.eval_shape(lambda: Llama(small, rngs=nnx.Rngs(0)))
    with pytest.raises(CheckpointError, match="ids up to 14, the model only 10 embeddings"):
        TextEncoder(llama, encoder.clip, **parts)
    clip = nnx.eval_shape(
        lambda: Clip(dataclasses.replace(CLIP_SMALL, eos_token_id=4), rngs=nnx.Rngs(0))
    )
    with pytest.raises(CheckpointError, match="does not end a text with token 4"):
        TextEncoder(encoder.llama, clip, **parts)
    parts["template"] = dataclasses.replace(TEMPLATE, max_length=9)
    with pytest.raises(InputError, match="a window of 12 tokens, its template one of 13"):
        TextEncoder(encoder.llama, encoder.clip, **parts)


def test_a_checkpoint_without_text_encoders_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint folder"):
        TextEncoder.load(tmp_path / "nothing")
    no_prompt = write_checkpoint(tmp_path / "a", prompt=False)
    with pytest.raises(CheckpointError, match="has no prompt template; convert again"):
        TextEncoder.load(no_prompt)
    with pytest.raises(InputError, match="unknown storage 'int4'"):
        TextEncoder.load(no_prompt, storage="int4")
