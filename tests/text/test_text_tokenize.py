import json
import re

import numpy as np
import pytest
from text_tokenizers import COLOURS, clip_end, write_clip_tokenizer, write_llama_tokenizer

from qsjax.errors import CheckpointError, InputError
from qsjax.text import PromptTemplate, PromptTokenizer, PromptTruncatedWarning, measure_crop_start
from qsjax.text.tokenize import require_tokens, warn_if_truncated

WORD = {word: i for i, word in enumerate(["<unk>", "\n", *COLOURS])}
BEGIN, EOT, PAD = (len(WORD) + i for i in range(3))
TEMPLATE = "describe a\n{}<|eot|>"


@pytest.fixture
def llama(tmp_path):
    write_llama_tokenizer(tmp_path)
    return lambda length: PromptTokenizer(tmp_path, length=length)


def test_texts_are_padded_on_the_right_with_the_pad_token(llama):
    tokens = llama(6)(["a red circle", "blue"])
    a, red, circle, blue = (WORD[w] for w in ("a", "red", "circle", "blue"))
    expected = [[BEGIN, a, red, circle, PAD, PAD], [BEGIN, blue, PAD, PAD, PAD, PAD]]
    np.testing.assert_array_equal(tokens.ids, expected)
    np.testing.assert_array_equal(tokens.mask, tokens.ids != PAD)
    assert tokens.ids.dtype == np.int32
    assert tokens.lost == (0, 0)


def test_long_texts_lose_their_end_and_keep_added_tokens(llama, tmp_path):
    tokens = llama(3)(["red green blue left<|eot|>"])
    np.testing.assert_array_equal(tokens.ids, [[BEGIN, WORD["red"], WORD["green"]]])
    assert tokens.lost == (3,)
    clip = PromptTokenizer(write_clip_tokenizer(tmp_path / "clip"), length=4)
    tokens = clip(["Red green blue left right"])
    assert tokens.ids[0].tolist() == [clip_end() - 1, 1, 2, clip_end()]
    assert tokens.lost == (3,)


def test_a_text_that_just_fits_loses_nothing(llama):
    tokens = llama(4)(["red green blue"])
    assert tokens.mask.all()
    assert tokens.lost == (0,)


def test_the_warning_names_the_prompt_and_what_was_kept(llama):
    prompts = ["red", "red green blue left " * 10]
    tokens = llama(8)(prompts)
    message = re.escape(
        "prompt 'red green blue left red green blue le...' is too long for LLaMA: "
        "its first 7 tokens were kept, 33 were dropped; shorten it"
    )
    with pytest.warns(PromptTruncatedWarning, match=message) as caught:
        warn_if_truncated(prompts, tokens, encoder="LLaMA", crop_start=1)
    assert len(caught) == 1


def test_settings_inside_the_file_do_not_matter(tmp_path):
    write_llama_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    data["truncation"] = {
        "direction": "Left", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    data["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None,
        "pad_id": EOT, "pad_type_id": 0, "pad_token": "<|eot|>",
    }  # fmt: skip
    path.write_text(json.dumps(data))
    tokens = PromptTokenizer(tmp_path, length=4)(["red green"])
    np.testing.assert_array_equal(tokens.ids, [[BEGIN, WORD["red"], WORD["green"], PAD]])
    (tmp_path / "tokenizer_config.json").unlink()
    assert PromptTokenizer(tmp_path, length=4)(["red green"]).ids[0, 3] == EOT


def test_an_empty_prompt_needs_a_token_from_the_tokenizer(tmp_path, llama):
    tokens = llama(4)([""])
    require_tokens([""], tokens, encoder="LLaMA")
    with pytest.raises(InputError, match="prompt '' gives LLaMA no token to read"):
        require_tokens([""], tokens, encoder="LLaMA", crop_start=1)
    bare = PromptTokenizer(write_llama_tokenizer(tmp_path / "bare", begin=False), length=4)
    with pytest.raises(InputError, match="write at least one word"):
        require_tokens(["red", ""], bare(["red", ""]), encoder="LLaMA")


def test_faulty_tokenizer_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="the tokenizer is missing; convert"):
        PromptTokenizer(tmp_path, length=4)
    write_llama_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<nowhere>"}')
    with pytest.raises(CheckpointError, match=r"'<nowhere>' is not in tokenizer\.json"):
        PromptTokenizer(tmp_path, length=4)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: it is not usable JSON"):
        PromptTokenizer(tmp_path, length=4)
    whole = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        PromptTokenizer(tmp_path, length=4)


def test_a_window_without_room_for_the_prompt_is_refused(llama):
    with pytest.raises(
        CheckpointError, match="window has 1 tokens, but the tokenizer itself adds 1"
    ):
        llama(1)


def test_template_fills_in_the_stripped_prompt():
    template = PromptTemplate(TEMPLATE, crop_start=4, max_length=8)
    assert template.fill("\n red {} ") == "describe a\nred {}<|eot|>"
    assert template.window == 12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("no place", 0, 8), "expected exactly one {} for the prompt, found 0"),
        (("{} and {}", 0, 8), "found 2"),
        (("{}", -1, 8), "crop_start is -1; give a number from 0 to"),
        (("{}", 0, 0), "max_length is 0; give a number from 1 to"),
    ],
)
def test_impossible_templates_are_refused(values, message):
    with pytest.raises(InputError, match=re.escape(message)):
        PromptTemplate(*values)


def test_crop_start_counts_begin_of_text_and_instructions(llama, tmp_path):
    tokenizer = llama(8)
    assert measure_crop_start(TEMPLATE, tokenizer) == 4
    assert measure_crop_start("{}", tokenizer) == 0
    clip = PromptTokenizer(write_clip_tokenizer(tmp_path / "clip"), length=8)
    assert measure_crop_start("describe a {}", clip) == 3
    with pytest.raises(InputError, match="merges with the prompt's first token"):
        measure_crop_start("describe a{}", clip)
    with pytest.raises(InputError, match="exactly one"):
        measure_crop_start("describe", tokenizer)
    assert tokenizer(["red"]).mask.sum() == 2  # measuring leaves the tokenizer as it was


@pytest.mark.hostile
@pytest.mark.parametrize("number", [1 << 20, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("part", ["vocabulary", "added", "template", "padding"])
def test_ids_that_no_embedding_has_are_counted(tmp_path, part, number):
    write_llama_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    if part == "vocabulary":
        data["model"]["vocab"]["red"] = number
    elif part == "added":
        data["added_tokens"][0]["id"] = number
    elif part == "template":
        data["post_processor"]["special_tokens"]["<|begin|>"]["ids"] = [number]
    else:
        data["padding"] = {
            "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": number, "pad_type_id": 0,
            "pad_token": "x",
        }  # fmt: skip
    path.write_text(json.dumps(data))
    try:
        tokenizer = PromptTokenizer(tmp_path, length=8)
    except CheckpointError:
        return
    assert tokenizer.vocab_size > tokenizer(["red green"]).ids.max()
