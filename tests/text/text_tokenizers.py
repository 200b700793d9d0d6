"""Small word-level tokenizers that behave as those of LLaMA-3 and CLIP."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

COLOURS = ["red", "green", "blue", "a", "circle", "square", "moves", "left", "right", "describe"]


def write_llama_tokenizer(directory: Path, *, begin: bool = True) -> Path:
    """Begin-of-text comes from the post-processor, as in LLaMA-3's own file; newlines are tokens."""
    specials = ["<|begin|>", "<|eot|>", "<pad>"]
    vocabulary = ["<unk>", "\n", *COLOURS, *specials]
    tokenizer = _word_level(vocabulary, "<unk>")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(" ", "removed"),
        ]
    )
    tokenizer.add_special_tokens(specials)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", vocabulary.index("<|begin|>"))]
        )
    return _write(tokenizer, directory, {"pad_token": "<pad>"})


def write_clip_tokenizer(directory: Path) -> Path:
    """End-of-text has the highest id and is the pad token."""
    specials = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = ["<unk>", *COLOURS, *specials]
    tokenizer = _word_level(vocabulary, "<unk>")
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[(token, vocabulary.index(token)) for token in specials],
    )
    return _write(tokenizer, directory, {"pad_token": {"content": "<|endoftext|>"}})


def clip_end() -> int:
    """Id of CLIP's end-of-text in `write_clip_tokenizer`."""
    return len(COLOURS) + 2


def _word_level(vocabulary, unknown):
    return Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=unknown)
    )


def _write(tokenizer, directory, config):
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
