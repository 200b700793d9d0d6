"""The DiT against diffusers' HunyuanVideoTransformer3DModel, float32 and bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from dit_pairs import CONFIGS, SMALL, diffusers_dit, inputs, our_dit, run_diffusers, run_ours
from tolerances import FLOAT32_GUIDANCE_6000, FLOAT32_NETWORK

from qsjax.dit import embedders
from qsjax.dit.rope import rope_tables


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers_at_guidance_6000(name):
    config = CONFIGS[name]
    model = diffusers_dit(config)
    given = inputs(config)
    expected = run_diffusers(model, given)
    assert np.abs(expected).max() > 0.5  # otherwise agreement says nothing
    found = run_ours(our_dit(config, model), given)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=FLOAT32_GUIDANCE_6000, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers_more_closely_with_torchs_frequency_table(name, monkeypatch):
    from diffusers.models.embeddings import get_timestep_embedding

    config = CONFIGS[name]
    # At t = 1 the sinusoid's angles are the frequencies themselves; torch's own exponential made them.
    half = embedders.FREQUENCIES
    exponent = -np.log(10_000) * torch.arange(half, dtype=torch.float32) / half
    table = torch.exp(exponent)
    features = get_timestep_embedding(
        torch.ones(1), 2 * half, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    np.testing.assert_array_equal(torch.sin(table), features[0, half:])
    monkeypatch.setattr(embedders, "sinusoid_frequencies", table.numpy)
    model = diffusers_dit(config, seed=1)
    given = inputs(config, seed=1)
    found = run_ours(our_dit(config, model), given)
    np.testing.assert_allclose(found, run_diffusers(model, given), atol=FLOAT32_NETWORK, rtol=0)


def test_frequency_table_is_torchs_but_for_the_last_bit():
    exponent = -np.log(10_000) * torch.arange(128, dtype=torch.float32) / 128
    ours, theirs = embedders.sinusoid_frequencies(), torch.exp(exponent).numpy()
    steps = np.abs(ours.view(np.int32) - theirs.view(np.int32))
    assert steps.max() <= 1
    assert (steps > 0).sum() <= 4


def test_rope_tables_equal_diffusers():
    from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoRotaryPosEmbed

    theirs = HunyuanVideoRotaryPosEmbed(2, 1, [4, 6, 6], 256.0)
    cos, sin = theirs(torch.zeros(1, 4, 5, 12, 8))
    for ours, table in zip(rope_tables(SMALL, (5, 6, 4)), (cos, sin), strict=True):
        np.testing.assert_allclose(ours, table, atol=2e-7, rtol=0)


def test_bfloat16_is_as_close_to_float32_as_diffusers_bfloat16_is():
    model = diffusers_dit(SMALL)
    given = inputs(SMALL)
    expected = run_diffusers(model, given)
    ours = np.asarray(run_ours(our_dit(SMALL, model, jnp.bfloat16), given))
    half = {
        k: v if k in ("timestep", "text_mask") else torch.from_numpy(v).bfloat16()
        for k, v in given.items()
    }
    with torch.no_grad():
        theirs = model.bfloat16()(
            hidden_states=half["latents"],
            timestep=torch.from_numpy(half["timestep"]),
            encoder_hidden_states=half["text"],
            encoder_attention_mask=torch.from_numpy(half["text_mask"]).long(),
            pooled_projections=half["pooled"],
            guidance=torch.from_numpy(given["guidance"]),
            return_dict=False,
        )[0].float().numpy()  # fmt: skip
    scale = np.linalg.norm(expected)
    assert np.linalg.norm(ours - expected) / scale < 1.5 * np.linalg.norm(theirs - expected) / scale


def test_padded_text_never_reaches_the_video():
    dit = our_dit(SMALL, diffusers_dit(SMALL))
    given = inputs(SMALL)
    for anything in (1e3, np.nan, np.inf):
        text = np.where(given["text_mask"][..., None], given["text"], anything)
        changed = dict(given, text=text.astype(np.float32))
        np.testing.assert_array_equal(run_ours(dit, given), run_ours(dit, changed))
    longer = dict(
        given,
        text=np.pad(given["text"], ((0, 0), (0, 5), (0, 0))),
        text_mask=np.pad(given["text_mask"], ((0, 0), (0, 5))),
    )
    np.testing.assert_allclose(
        run_ours(dit, given), run_ours(dit, longer), atol=FLOAT32_NETWORK, rtol=0
    )


def test_precomputed_modulation_gives_the_same_velocity():
    dit = our_dit(SMALL, diffusers_dit(SMALL))
    given = inputs(SMALL)
    given["timestep"] = np.full(2, 640.0, np.float32)
    table = jax.jit(type(dit).modulation)(
        dit,
        jnp.array([1000.0, 640.0]),
        jnp.asarray(given["pooled"]),
        jnp.asarray(given["guidance"]),
    )
    row = jax.tree.map(lambda leaf: leaf[1], table)
    assert table.img.shape == (2, SMALL.num_double_blocks, 2, 6 * SMALL.hidden_size)
    found = run_ours(dit, dict(given, guidance=None), modulation=row)
    np.testing.assert_allclose(found, run_ours(dit, given), atol=FLOAT32_NETWORK, rtol=0)
