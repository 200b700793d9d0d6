import numpy as np
import pytest

from qsjax.errors import InputError
from qsjax.tiny import checker, data, latents, words

# Of clip 0 of seed 7, so that a change of the stream is noticed: trained weights belong to it.
RADIUS = 0.23179797355769363


def test_a_clip_is_a_function_of_seed_and_index():
    video, caption = data.clip(3, 5)
    again, same = data.clip(3, 5)
    assert caption == same
    np.testing.assert_array_equal(video, again)
    assert video.shape == (3, 17, 64, 64)
    assert video.dtype == np.float32
    assert np.abs(video).max() <= 1
    assert any(data.clip(4, 5)[1] != caption or data.clip(3, i)[1] != caption for i in range(6, 9))


def test_the_stream_never_changes():
    scene = data.scene(7, 0)
    assert scene.caption == "a purple circle moves right over a dark background"
    assert scene.radius == pytest.approx(RADIUS, abs=1e-12)


@pytest.mark.parametrize("size", [(1, 16, 16), (9, 32, 48), (33, 64, 40)])
def test_any_size(size):
    video, _ = data.clip(0, 1, *size)
    assert video.shape == (3, *size)


def test_bad_arguments():
    with pytest.raises(InputError):
        data.scene(-1, 0)
    with pytest.raises(InputError):
        data.render(data.scene(0, 0), 0, 8, 8)


def test_every_caption_is_made_of_the_vocabulary():
    captions = data.all_captions()
    assert len(captions) == len(set(captions)) == 504
    assert {word for caption in captions for word in caption.split()} <= {*data.VOCABULARY, "an"}
    assert all(data.scene(1, i).caption in set(captions) for i in range(50))
    assert len(set(data.VOCABULARY)) == len(data.VOCABULARY)


@pytest.mark.parametrize("side", [48, 64])
def test_the_checker_reads_real_clips(side):
    scenes = [data.scene(11, i) for i in range(100)]
    score = checker.score((data.render(s, 9, side, side), s) for s in scenes)
    assert min(score.color, score.shape, score.direction) >= 0.98
    assert score.clips == 100


def test_the_checker_sees_nothing_in_a_plain_clip():
    plain = np.full((3, 9, 32, 32), -0.5, np.float32)
    assert checker.read_clip(plain) == (None, None, None)


def test_the_checker_notices_a_wrong_clip():
    scene = data.scene(11, 0)
    video = data.render(scene, 9, 48, 48)
    color, shape, direction = checker.read_clip(video[:, ::-1])
    assert (color, shape) == (scene.color, scene.shape)
    assert direction != scene.direction


def test_the_latent_space_keeps_a_clip():
    basis = latents.fit(0, clips=12)
    video, _ = data.clip(99, 0)
    z = latents.encode(basis, video)
    assert z.shape == (16, 5, 16, 16)
    error = np.square(latents.decode(basis, z) - video).mean()
    assert -10 * np.log10(error / 4) > 25
    with pytest.raises(InputError, match="4k\\+1"):
        latents.encode(basis, video[:, :16])


@pytest.mark.parametrize("kind", ["llama", "clip"])
def test_the_tokenizer_gives_the_ids_of_training(kind, tmp_path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(words.tokenizer_files(kind)["tokenizer.json"])
    names = words.LLAMA_TOKENS if kind == "llama" else words.CLIP_TOKENS
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
