import dataclasses
import itertools
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from tolerances import FLOAT32_NETWORK

from qsjax.errors import InputError
from qsjax.tiny import checker, configs, data, encoders, scenes, words
from qsjax.tiny.training import latents

# Of clip 0 of seed 7, so that a change of the stream is noticed: trained weights belong to it.
CAPTION, RADIUS = "a blue square moves up over a light background", 0.22817815149184573


def test_a_clip_is_a_function_of_seed_and_index():
    video, caption = data.clip(3, 5)
    again, same = data.clip(3, 5)
    assert caption == same
    np.testing.assert_array_equal(video, again)
    assert video.shape == (3, 33, 64, 64)
    assert video.dtype == np.float32
    assert np.abs(video).max() <= 1
    assert any(data.clip(4, 5)[1] != caption or data.clip(3, i)[1] != caption for i in range(6, 9))


def test_the_stream_never_changes():
    scene = scenes.scene(7, 0)
    assert scene.caption == CAPTION
    assert scene.objects[0].radius == pytest.approx(RADIUS, abs=1e-12)


@pytest.mark.parametrize("size", [(1, 16, 16), (9, 32, 48), (33, 64, 40)])
def test_any_size(size):
    video, _ = data.clip(0, 1, *size)
    assert video.shape == (3, *size)


def test_bad_arguments():
    with pytest.raises(InputError):
        scenes.scene(-1, 0)
    with pytest.raises(InputError):
        data.render(scenes.scene(0, 0), 0, 8, 8)


def one_object_captions() -> Iterator[str]:
    some = scenes.scene(7, 0)
    looks = itertools.product(scenes.COLORS, scenes.SHAPES, scenes.MOTIONS)
    for color, shape, motion in looks:
        one = dataclasses.replace(some.objects[0], color=color, shape=shape, motion=motion)
        for tone, texture in itertools.product(scenes.TONES, scenes.TEXTURES):
            yield dataclasses.replace(some, objects=(one,), tone=tone, texture=texture).caption


def test_every_caption_is_made_of_the_vocabulary():
    captions = list(one_object_captions())
    assert len(captions) == len(set(captions)) == 756
    drawn = [scenes.scene(1, i) for i in range(400)]
    spoken = {word for caption in captions for word in caption.split()}
    spoken |= {word for scene in drawn for word in scene.caption.split()}
    assert spoken == {*scenes.VOCABULARY, "an"}
    assert all((len(s.objects) == 1) == (s.caption in set(captions)) for s in drawn)
    assert len(set(scenes.VOCABULARY)) == len(scenes.VOCABULARY)
    share = np.mean([len(scene.objects) == 2 for scene in drawn])
    assert abs(share - scenes.TWO_OBJECTS) < 0.08


def test_a_stream_may_have_more_clips_with_two_objects():
    for share in (0.0, 1.0):
        drawn = [scenes.scene(1, i, two_objects=share) for i in range(20)]
        assert {len(scene.objects) for scene in drawn} == {1 + int(share)}
    assert scenes.scene(7, 0, two_objects=0.0) == scenes.scene(7, 0)


def covered(scene: scenes.Scene) -> np.ndarray:
    """Pixels [frames, height, width] that are mostly an object's."""
    video = data.render(scene, 9, 64, 64)
    return video.max(axis=0) - video.min(axis=0) > 1.0


def test_objects_stay_inside_and_apart():
    for scene in (scenes.scene(5, i) for i in range(200)):
        mask = covered(scene)
        # The feet of a triangle may touch the border, by half a pixel.
        assert mask[:, [0, -1]].mean() < 0.03
        assert mask[:, :, [0, -1]].mean() < 0.03
        if len(scene.objects) == 2:
            first, second = (
                covered(dataclasses.replace(scene, objects=(one,))) for one in scene.objects
            )
            assert not (first & second).any()
            one, other = scene.objects
            wheel = list(scenes.COLORS)
            apart = abs(wheel.index(one.color) - wheel.index(other.color))
            assert 2 <= apart <= len(wheel) - 2
            assert one.motion == other.motion
            # The one named first is on the left or above.
            before = [np.argwhere(mask[0]).mean(axis=0) for mask in (first, second)]
            assert (before[0] < before[1]).any()


@pytest.mark.parametrize(("frames", "side", "clips"), [(33, 64, 100), (17, 48, 100), (65, 96, 50)])
def test_the_checker_reads_real_clips(frames, side, clips):
    drawn = [scenes.scene(11, i) for i in range(clips)]
    score = checker.score((data.render(s, frames, side, side), s) for s in drawn)
    assert min(score.color, score.shape, score.motion) >= 0.98
    assert score.clips == clips


@pytest.mark.parametrize("objects", [1, 2])
def test_the_checker_sees_nothing_in_a_plain_clip(objects):
    plain = np.full((3, 9, 32, 32), -0.5, np.float32)
    assert checker.read_clip(plain, objects) == (checker.NOTHING,) * objects


def first_with(**wanted) -> scenes.Scene:
    """A scene with one object that is as wanted."""
    drawn = (scenes.scene(11, i) for i in range(1000))
    return next(
        s
        for s in drawn
        if len(s.objects) == 1 and all(getattr(s.objects[0], k) == v for k, v in wanted.items())
    )


@pytest.mark.parametrize(
    ("motion", "backwards"),
    [("left", "right"), ("up", "down"), ("grows", None), ("around", "around")],
)
def test_the_checker_notices_a_clip_run_backwards(motion, backwards):
    scene = first_with(motion=motion)
    (one,) = checker.read_clip(data.render(scene, 9, 48, 48)[:, ::-1])
    assert (one.color, one.shape) == (scene.objects[0].color, scene.objects[0].shape)
    assert one.motion == backwards


def test_the_checker_wants_all_objects_right():
    scene = next(s for s in (scenes.scene(11, i) for i in range(99)) if len(s.objects) == 2)
    video = data.render(scene, 9, 64, 64)
    assert checker.score([(video, scene)]) == (1.0, 1.0, 1.0, 1)
    first, second = scene.objects
    other = next(c for c in scenes.COLORS if c not in (first.color, second.color))
    changed = dataclasses.replace(scene, objects=(first, dataclasses.replace(second, color=other)))
    assert checker.score([(video, changed)]) == (0.0, 1.0, 1.0, 1)
    swapped = (second, first)
    assert checker.score([(video, dataclasses.replace(scene, objects=swapped))]).color == 1.0


def test_the_latent_space_keeps_a_clip():
    basis = latents.fit(0, clips=12)
    video, _ = data.clip(99, 0)
    z = latents.encode(basis, video)
    assert z.shape == (16, 9, 16, 16)
    error = np.square(latents.decode(basis, z) - video).mean()
    assert -10 * np.log10(error / 4) > 25
    with pytest.raises(InputError, match="4k\\+1"):
        latents.encode(basis, video[:, :32])


def test_a_latent_space_is_read_off_an_encoder():
    """One that computes it nearly: with channels of other signs and order, and noise."""
    fitted, random = latents.fit(0, clips=6), np.random.default_rng(0)
    order, signs = random.permutation(16), random.choice([-1.0, 1.0], 16).astype(np.float32)
    learned = latents.Basis(
        fitted.mean, fitted.forward[:, order] * signs, fitted.backward[order] * signs[:, None]
    )

    def encode(video):
        z = latents.encode(learned, video)
        return z + 0.02 * random.standard_normal(z.shape, np.float32)

    found = latents.read_off(encode, seed=1, clips=12)
    video, _ = data.clip(99, 0)
    z = latents.encode(learned, video)
    error = np.square(latents.encode(found, video) - z).mean() / np.square(z).mean()
    assert error < 0.01  # Of a sign that is wrong: 4 times a channel's share.
    np.testing.assert_allclose(found.forward.T @ found.backward.T, np.eye(16), atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "clip"])
def test_the_tokenizer_gives_the_ids_of_training(kind, tmp_path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(words.tokenizer_files(kind)["tokenizer.json"])
    names = configs.LLAMA_TOKENS if kind == "llama" else configs.CLIP_TOKENS
    ids = tokenizer.encode("A red circle moves left over dark stripes").ids
    assert ids[0] == names.index("<begin>")
    assert [names[i] for i in ids[1:4]] == ["a", "red", "circle"]
    assert (ids[-1] == len(names) - 1) == (kind == "clip")
    empty = tokenizer.encode("").ids
    assert len(empty) == (1 if kind == "llama" else 2)
    assert names[tokenizer.encode("zebra").ids[1]] == "<unk>"
    assert tokenizer.encode("an orange").ids == tokenizer.encode("a orange").ids


def test_captions_are_told_apart():
    encoded = words.encode(
        [
            "a red circle moves left over dark stripes",
            "a red circle moves right over dark stripes",
            "",
        ]
    )
    pooled = np.asarray(encoded.pooled)
    assert np.abs(pooled[0] - pooled[1]).max() > 0.1
    assert np.asarray(encoded.mask).sum(axis=1).tolist() == [9, 9, 1]


def test_a_motion_knows_its_shape_and_colour():
    """What a bag of words does not say: a linear map of the motion word's state tells which object it belongs to."""
    drawn = [scenes.scene(1, i, two_objects=1.0) for i in range(500)]
    captions = [scene.caption for scene in drawn]
    tokens, states = words.tokenize(captions, 16), np.asarray(words.encode(captions).text)
    names = (*scenes.DIRECTIONS, "around", "grows")
    motions = np.isin(tokens.ids, [configs.LLAMA_TOKENS.index(name) for name in names])
    x = np.pad(states[motions[:, : states.shape[1]]], ((0, 0), (0, 1)), constant_values=1)
    looks = [one for scene in drawn for one in scene.objects]
    half = len(looks) // 2
    for wanted in ([one.color for one in looks], [one.shape for one in looks]):
        classes, truth = np.unique(wanted, return_inverse=True)
        fit = np.linalg.lstsq(x[:half], np.eye(len(classes))[truth[:half]])[0]
        assert np.mean((x[half:] @ fit).argmax(axis=1) == truth[half:]) > 0.98


def test_heads_look_back_one_and_two_words():
    """Two layers of them: a word's state depends on the four words before it, and hardly on those further back."""
    caption = "a red circle moves left and a blue square moves up over dark stripes"
    base = caption.split()
    changed = [" ".join([*base[:word], "grows", *base[word + 1 :]]) for word in range(len(base))]
    states = np.asarray(words.encode([caption, *changed]).text)
    at = 12  # "dark"; its state is at 13, after begin-of-text
    moved = np.linalg.norm(states[1:, at + 1] - states[0, at + 1], axis=-1)
    assert (moved[at - 2 : at] > 3).all()
    assert (moved[: at - 4] < 0.3 * moved[at - 1]).all()
    assert (moved[at + 1 :] == 0).all()


def test_padding_does_not_change_what_the_encoders_say():
    captions = ["a red circle grows over dark stripes", ""]
    short, long = words.encode(captions), words.encode_tokens(words.tokenize(captions, 16))
    for row, valid in enumerate(np.asarray(short.mask).sum(axis=1)):
        pair = (np.asarray(x.text)[row, :valid] for x in (long, short))
        np.testing.assert_allclose(*pair, atol=FLOAT32_NETWORK)
    np.testing.assert_allclose(long.pooled, short.pooled, atol=FLOAT32_NETWORK)
    with pytest.raises(InputError, match="8 tokens, 7"):
        words.tokenize(captions, 7)


def test_the_encoders_may_be_needed_first_inside_a_program():
    encoders.llama.cache_clear()
    encoders.clip.cache_clear()
    words.encode_tokens.clear_cache()
    inside = jax.jit(lambda tokens: words.encode_tokens(tokens).pooled)
    for length in (9, 10):
        tokens = words.tokenize(["a red circle grows over dark stripes"], length)
        assert np.isfinite(np.asarray(inside(tokens))).all()
