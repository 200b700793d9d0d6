"""The pipeline on the bundled model: seeds, shapes, compilations, callbacks, refusals."""

import gc
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

import qsjax
from qsjax.checkpoint import Manifest, stored_bytes
from qsjax.dit import load_dit
from qsjax.errors import Cancelled, InputError
from qsjax.quant import device_bytes
from qsjax.sample import Skip, SparsePlan
from qsjax.sparse import Sparsity
from qsjax.text import load_prompts, save_prompts

SIZE = {"frames": 5, "height": 16, "width": 24, "steps": 4}
"""That of test_compiling.py, which leaves programs on disk."""
CAPTION = "a red circle moves left over a dark background"
OTHER = "a blue square moves up over light stripes"


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return qsjax.Pipeline.from_checkpoint(tiny_checkpoint, progress=False)


@pytest.fixture(scope="module")
def video(pipeline):
    return pipeline(CAPTION, seed=1, **SIZE)


def test_same_seed_same_bits_and_another_seed_another_video(pipeline, video):
    assert video.dtype == np.uint8
    assert video.shape == (5, 16, 24, 3)
    np.testing.assert_array_equal(pipeline(CAPTION, seed=1, **SIZE), video)
    assert (pipeline(CAPTION, seed=2, **SIZE) != video).any()
    assert (pipeline(OTHER, seed=1, **SIZE) != video).any()


def test_compiles_once_for_a_size_and_says_how_long(pipeline, video):
    compiled = []
    monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        pipeline(OTHER, seed=9, **SIZE)
        assert compiled == []
        assert "compile" not in pipeline.timings
        pipeline(OTHER, seed=9, **SIZE | {"width": 16})
        assert compiled
        assert pipeline.timings["compile"] > 0
        assert set(pipeline.timings) == {"encode", "compile", "denoise", "decode"}
    finally:
        monitoring.clear_event_listeners()


def test_a_batch_and_an_encoded_prompt(pipeline, tmp_path):
    batch = pipeline([CAPTION, OTHER], seed=1, **SIZE)
    assert batch.shape == (2, 5, 16, 24, 3)
    encoded = pipeline.encode([CAPTION, OTHER])
    save_prompts(tmp_path / "p.safetensors", encoded, [CAPTION, OTHER])
    loaded = load_prompts(tmp_path / "p.safetensors")
    np.testing.assert_array_equal(pipeline(loaded, seed=1, **SIZE), batch)


def test_an_encoded_prompt_of_another_model_is_refused(pipeline):
    encoded = pipeline.encode(CAPTION)
    for other in (
        encoded._replace(text=encoded.text[..., :-1]),
        encoded._replace(pooled=encoded.pooled[:, :-1]),
    ):
        for refused in ({"prompt": other}, {"prompt": encoded, "negative_prompt": other}):
            with pytest.raises(InputError, match="encode it with this checkpoint"):
                pipeline.generate(**refused, **SIZE)
        with pytest.raises(InputError, match="encode it with this checkpoint"):
            next(pipeline.denoise(other))
    with pytest.raises(InputError, match="2 negative prompts were given for 1 prompts"):
        next(pipeline.denoise(encoded, negative=pipeline.encode([CAPTION, OTHER])))


def test_sparse_attention_that_no_step_has_is_said(pipeline, caplog):
    for steps, said in ((3, True), (4, False)):
        caplog.clear()
        settings = pipeline.resolve(
            **SIZE | {"steps": steps, "sparse": SparsePlan(dense_steps=3, interval=0)}
        )
        pipeline.require_runnable(settings)
        assert ("all 3 steps have full attention" in caplog.text) == said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shift": 7.0, "steps": 50}, True),
        ({"shift": 5.0, "steps": 50}, False),
        ({"shift": 17.0, "steps": 6}, False),  # a distilled model's own
        ({"shift": 7.0, "steps": 50, "height": 544, "width": 960}, False),
    ],
)
def test_a_shift_for_larger_videos_is_hinted_at(pipeline, caplog, change, said):
    caplog.set_level("INFO", logger="qsjax")
    settings = pipeline.resolve(**SIZE | change)
    pipeline.require_runnable(settings)
    assert ("is for larger videos; at 16x24 diffusers advises 2 to 5" in caplog.text) == said
    assert settings.shift == change["shift"]


def test_a_prompt_that_is_no_text_is_refused(pipeline):
    for prompt, message in (
        ("  ", "is empty"),
        ([], "is empty"),
        ("a\udcff", "not Unicode at character 1"),
    ):
        with pytest.raises(InputError, match=message):
            pipeline.generate(prompt, **SIZE)


def test_given_latents_replace_the_seed_and_are_not_consumed(pipeline, video):
    settings = pipeline.resolve(**SIZE)
    latents = qsjax.sample.initial_noise(1, pipeline.latent_shape(settings))
    for seed in (0, 5):
        np.testing.assert_array_equal(pipeline(CAPTION, seed=seed, latents=latents, **SIZE), video)
    with pytest.raises(InputError, match="need"):
        pipeline(CAPTION, latents=latents[:, :, :1], **SIZE)


def test_callback_sees_each_step_and_can_cancel(pipeline):
    seen = []
    pipeline(CAPTION, callback=lambda step, latents: seen.append((step, latents.shape)), **SIZE)
    assert seen == [(step, (1, 16, 2, 4, 6)) for step in (1, 2, 3, 4)]
    with pytest.raises(Cancelled, match="after step 1 of 4") as caught:
        pipeline(CAPTION, callback=lambda step, latents: False, **SIZE)
    assert caught.value.step == 1
    assert caught.value.latents.shape == (1, 16, 2, 4, 6)


def test_a_caller_who_has_seen_enough_stops_and_latents_stay_readable(pipeline):
    text, settings = pipeline.encode(CAPTION), pipeline.resolve(**SIZE)
    kept = [result.latents for result in pipeline.denoise(text, settings=settings, seed=4)]
    for result in pipeline.denoise(text, settings=settings, seed=4):
        first = result
        break
    assert (first.index, first.kind) == (0, "dense")
    np.testing.assert_array_equal(first.latents, kept[0])
    sampled = pipeline.sample(text, settings=settings, seed=4)
    np.testing.assert_array_equal(sampled, kept[-1])
    assert (np.asarray(kept[0]) != kept[-1]).any()


def test_step_by_step_equals_the_whole_sampler(pipeline):
    settings = pipeline.resolve(**SIZE, true_cfg=1.0)
    text = pipeline.encode(CAPTION)
    stepwise = pipeline.sample(text, settings=settings, seed=4)
    sampler = jax.jit(qsjax.make_sampler(pipeline.dit_config, settings.plan()))
    noise = qsjax.sample.initial_noise(4, pipeline.latent_shape(settings))
    np.testing.assert_allclose(sampler(pipeline.dit, noise, text), stepwise, atol=1e-4)


@pytest.fixture
def only_new_garbage():
    """Garbage is looked for among what the test makes: all that a long run of tests left alive would take a second each time.

    It stays left out, as what the imports made (conftest.py), or every later search would look through all of it again.
    """
    gc.collect()
    gc.freeze()


def live_bytes():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def test_sparse_attention_compiles_three_programs_and_at_density_one_is_dense(pipeline, video):
    sparse = SparsePlan(sparsity=Sparsity(mask="topk", density=1.0, block=4), interval=2)
    size = SIZE | {"sparse": replace(sparse, dense_steps=2)}
    found = pipeline(CAPTION, seed=1, **size)
    assert np.abs(found.astype(int) - video).max() <= 1  # a level of 8 bits
    assert {name for name, *_ in pipeline._denoiser.programs} >= {
        "dense",
        "refresh",
        "sparse",
        "cache",
    }
    kept = []
    pipeline(OTHER, seed=2, **size, callback=lambda step, latents: kept.append(latents))
    assert "compile" not in pipeline.timings
    # A step overwrites its cache in place, and the latents that a callback has kept are not part of it.
    kept = [np.asarray(latents) for latents in kept]
    assert len({latents.tobytes() for latents in kept}) == 4
    np.testing.assert_array_equal(pipeline.heads.density, 1)
    assert pipeline.kinds == ("dense", "refresh", "sparse", "refresh")
    third = replace(sparse, sparsity=replace(sparse.sparsity, density=0.3))
    assert (pipeline(CAPTION, seed=1, **SIZE | {"sparse": third}) != video).any()
    assert (pipeline.heads.density < 1).all()


def test_steps_are_left_out_and_counted(pipeline, video):
    pipeline(CAPTION, seed=1, **SIZE)
    assert (pipeline.skipped, pipeline.heads) == (0, None)
    kept = []
    found = pipeline(
        CAPTION,
        seed=1,
        **SIZE,
        skip=Skip(threshold=1e9),
        callback=lambda step, latents: kept.append(latents),
    )
    assert len({np.asarray(latents).tobytes() for latents in kept}) == 4
    assert pipeline.skipped == 2
    assert (found != video).any()


@pytest.mark.usefixtures("only_new_garbage")
def test_staged_models_are_in_memory_one_at_a_time(pipeline, tiny_checkpoint):
    staged = qsjax.Pipeline.from_checkpoint(tiny_checkpoint, staged=True, progress=False)
    settings, before = staged.resolve(**SIZE), live_bytes()
    text = staged.encode(CAPTION)
    prompts = sum(leaf.nbytes for leaf in jax.tree.leaves(text))
    encoders = sum(map(device_bytes, (staged.text_encoder.llama, staged.text_encoder.clip)))
    assert live_bytes() - before == prompts + encoders
    latents = staged.sample(text, settings=settings, seed=1)
    assert live_bytes() - before == prompts + latents.nbytes + device_bytes(staged.dit)
    frames = staged.decode(latents)
    assert live_bytes() - before == prompts + latents.nbytes + device_bytes(staged.vae)
    staged.release()
    assert live_bytes() - before == prompts + latents.nbytes
    expected = pipeline.decode(pipeline.sample(pipeline.encode(CAPTION), settings=settings, seed=1))
    np.testing.assert_array_equal(frames, expected)
    assert not pipeline.staged


def test_models_are_staged_where_they_would_fill_the_device(tiny_checkpoint, monkeypatch):
    stored = stored_bytes(Manifest.read(tiny_checkpoint))
    for room, staged in ((stored, True), (4 * stored, False), (None, False)):
        device = SimpleNamespace(memory_stats=lambda room=room: room and {"bytes_limit": room})
        monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
        assert qsjax.Pipeline.from_checkpoint(tiny_checkpoint, dtype="float32").staged == staged


@pytest.mark.usefixtures("only_new_garbage")
def test_modulation_weights_leave_the_memory(pipeline, tiny_checkpoint):
    """While steps run, memory is smaller by them, and the latents are the same bit for bit, for one prompt after the other."""
    released = qsjax.Pipeline.from_checkpoint(
        tiny_checkpoint, modulation="released", progress=False
    )
    settings = pipeline.resolve(**SIZE, true_cfg=1.0)
    weights = device_bytes(load_dit(tiny_checkpoint, dtype=jnp.float32, part="modulation"))

    def sample(one, text, held):
        """Latents, and what is alive at each step besides all that is not this pipeline's transformer."""
        before, seen = live_bytes() - held, []
        latents = one.sample(
            text,
            settings=settings,
            seed=3,
            callback=lambda step, latents: seen.append(live_bytes() - before),
        )
        return np.asarray(latents), seen

    held = 0
    for prompt in (CAPTION, OTHER):
        text = pipeline.encode(prompt)
        expected, whole = sample(pipeline, text, device_bytes(pipeline.dit))
        latents, steps = sample(released, text, held)
        np.testing.assert_array_equal(latents, expected)
        assert [a - b for a, b in zip(whole, steps, strict=True)] == [weights] * 4
        held = device_bytes(released.dit)


@pytest.mark.usefixtures("only_new_garbage")
def test_text_encoders_are_dropped_before_modulation_weights_are_read(tiny_checkpoint, monkeypatch):
    staged = qsjax.Pipeline.from_checkpoint(
        tiny_checkpoint, modulation="released", staged=True, progress=False
    )
    settings, before, held = staged.resolve(**SIZE), live_bytes(), {}

    def load(*args, part, **options):
        held[part] = live_bytes() - before
        return load_dit(*args, part=part, **options)

    monkeypatch.setattr("qsjax.models.load_dit", load)
    noise = 4 * np.prod(staged.latent_shape(settings))
    for prompt in (CAPTION, OTHER):
        text = staged.encode(prompt)
        prompts = sum(leaf.nbytes for leaf in jax.tree.leaves(text))
        staged.sample(text, settings=settings, seed=1)
        assert held.pop("modulation") == prompts + noise
        assert held.pop("steps") < prompts + noise + device_bytes(staged.text_encoder.llama)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 32}, "nearest valid number is 33"),
        ({"frames": 6}, "nearest valid number is 5"),
        ({"frames": 0}, "frames is 0; give a number from 1 to"),
        ({"height": 100}, "nearest valid value is 104"),
        ({"width": 3}, "nearest valid value is 8"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_impossible_settings_name_the_nearest_possible(pipeline, change, message):
    with pytest.raises(InputError, match=message):
        pipeline(CAPTION, **SIZE | change)


@pytest.mark.parametrize("prompt", ["", "  \n", [], [CAPTION, ""]])
def test_empty_prompts_are_refused(pipeline, prompt):
    with pytest.raises(InputError, match="empty"):
        pipeline(prompt, **SIZE)


def test_a_prompt_longer_than_the_window_is_cut_with_a_warning(pipeline):
    from qsjax.text import PromptTruncatedWarning

    with pytest.warns(PromptTruncatedWarning):
        pipeline.encode(" ".join([CAPTION] * 40))


def test_settings_come_from_the_checkpoint(pipeline):
    settings = pipeline.settings
    assert (settings.height, settings.fps) != (720, 24)
    assert pipeline.resolve(steps=3).steps == 3
