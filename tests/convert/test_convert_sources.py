"""Which files feed which component, and the small files that travel along."""

import hashlib
import importlib.util
import json

import pytest
import tokenizers

from convert import Sources
from convert.prompt_template import find_prompt_template
from convert.tokenizers import tokenizer_files
from qsjax.errors import CheckpointError, InputError

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")  # fmt: skip


@pytest.fixture
def pipeline(tmp_path):
    """An empty diffusers folder."""
    folder = tmp_path / "model"
    for part in PARTS:
        (folder / part).mkdir(parents=True)
    index = {"_class_name": "HunyuanVideoPipeline"} | {part: ["library", "Class"] for part in PARTS}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_diffusers_folder(pipeline):
    (pipeline / "prompt_template.json").write_text("{}")
    (pipeline / "qsjax.json").write_text("{}")
    found = Sources.find(pipeline)
    assert all(getattr(found, part) == pipeline / part for part in PARTS)
    assert found.prompt_template == pipeline / "prompt_template.json"
    assert found.generation == pipeline / "qsjax.json"
    assert list(found.components()) == ["dit", "vae", "llama", "clip"]


def test_named_part_replaces_that_of_the_folder(pipeline, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_text("")
    (pipeline / "vae").rmdir()
    found = Sources.find(pipeline, vae=other, text_encoder=None)
    assert found.vae == other
    assert found.text_encoder == pipeline / "text_encoder"


def test_incomplete_folder(pipeline):
    (pipeline / "vae").rmdir()
    with pytest.raises(InputError, match=r"model_index\.json names vae, but the folder is absent"):
        Sources.find(pipeline)


def test_image_to_video_is_refused(pipeline):
    (pipeline / "model_index.json").write_text(
        '{"_class_name": "HunyuanVideoImageToVideoPipeline"}'
    )
    with pytest.raises(InputError, match="holds a 'HunyuanVideoImageToVideoPipeline', only"):
        Sources.find(pipeline)


def test_folder_of_tencent(tmp_path):
    for path in ("transformers/mp_rank_00_model_states.pt", "vae/pytorch_model.pt"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text("")
    found = Sources.find(tmp_path)
    assert found.components() == {
        "dit": tmp_path / "transformers/mp_rank_00_model_states.pt",
        "vae": tmp_path / "vae/pytorch_model.pt",
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [("HunyuanVideoTransformer3DModel", "dit"), ("AutoencoderKLHunyuanVideo", "vae")],
)
def test_folder_of_one_component(name, part, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    assert Sources.find(tmp_path).components() == {part: tmp_path}


def test_file_is_a_transformer(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("")
    assert Sources.find(path).components() == {"dit": path}


def test_tokenizer_beside_the_text_encoder(tmp_path):
    with pytest.raises(InputError, match=r"has no tokenizer beside it; .* `tokenizer_2`"):
        Sources.find(text_encoder_2=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert Sources.find(text_encoder_2=tmp_path).tokenizer_2 == tmp_path


def test_sources_that_are_none(tmp_path):
    with pytest.raises(InputError, match="nothing to convert"):
        Sources.find()
    with pytest.raises(InputError, match="does not exist"):
        Sources.find(tmp_path / "absent")
    with pytest.raises(InputError, match="does not exist; give an existing path for text encoder"):
        Sources.find(text_encoder=tmp_path / "absent")
    with pytest.raises(InputError, match="is not a diffusers folder"):
        Sources.find(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="describes a transformer, and none is to be converted"):
        Sources(vae=tmp_path, config=tmp_path / "config.json")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(
        InputError,
        match="is a converted checkpoint already; write PyTorch files from it with `export`",
    ):
        Sources.find(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_damaged_index(text, tmp_path):
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(
        CheckpointError, match=r"model_index\.json: the file is (not usable JSON|a JSON list)"
    ):
        Sources.find(tmp_path)


def test_template_out_of_diffusers_source():
    found = find_prompt_template(None)
    text = found.template.encode()
    assert hashlib.sha256(text).hexdigest().startswith("a52f68dde3637b12")
    assert (len(text), found.crop_start, found.max_length) == (512, 95, 256)


def test_without_diffusers(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match="pip install diffusers` or pass a file as `prompt_template`"
    ):
        find_prompt_template(None)


def test_template_file(tmp_path):
    path = tmp_path / "template.json"
    path.write_text('{"template": "say {}", "crop_start": 2, "max_length": 24}')
    assert find_prompt_template(path).fill(" hello") == "say hello"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"template": "{}", "crop_start": 0}', "missing max_length"),
        ('{"template": "{}", "crop_start": 0, "max_len": 3}', "unknown key 'max_len'"),
        ('{"template": "x", "crop_start": 0, "max_length": 3}', "exactly one {}"),
    ],
)
def test_bad_template_file(text, message, tmp_path):
    path = tmp_path / "template.json"
    path.write_text(text)
    with pytest.raises(InputError, match=f"{path}.*{message}"):
        find_prompt_template(path)


def test_clip_tokenizer_of_vocabulary_and_merges_is_compiled(tmp_path):
    words = ["a", "b", "c", "a</w>", "b</w>", "c</w>", "ab", "abc</w>", "<|startoftext|>", "<|endoftext|>"]  # fmt: skip
    (tmp_path / "vocab.json").write_text(json.dumps({w: k for k, w in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nab c</w>\n")
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<|endoftext|>"}')
    files = tokenizer_files(tmp_path, vocabulary=10)
    assert set(files) == {"tokenizer.json", "special_tokens_map.json"}
    tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    assert tokenizer.encode("abc a").ids == [8, 7, 3, 9]


def test_no_tokenizer(tmp_path):
    with pytest.raises(InputError, match=r"neither tokenizer\.json nor merges\.txt"):
        tokenizer_files(tmp_path, vocabulary=10)
