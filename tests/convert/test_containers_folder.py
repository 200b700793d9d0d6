"""Folders and indexes: exactly one source is found, or a sentence says what is there."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert.containers import open_source
from qsjax.errors import CheckpointError, InputError

STEM = "diffusion_pytorch_model"


def save(path, *names, value=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.full((4,), value) for name in names or ("w",)}, path)
    return path


def save_torch(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: torch.ones(4) for name in names or ("w",)}, path)
    return path


def sharded(folder, **changes):
    """Two shards with tensors a | b, c, and an index; `changes` override its weight_map or total_size."""
    save(folder / f"{STEM}-00001-of-00002.safetensors", "a")
    save(folder / f"{STEM}-00002-of-00002.safetensors", "b", "c")
    first, second = (f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2))
    total = changes.pop("total_size", 48)
    weight_map = {"a": first, "b": second, "c": second, **changes}
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: shard for name, shard in weight_map.items() if shard},
    }
    path = folder / f"{STEM}.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


@pytest.mark.parametrize(
    "name",
    [
        f"{STEM}.safetensors",
        "model.safetensors",
        f"{STEM}.fp16.safetensors",
        "model.pt",
        "mp_rank_00_model_states.pt",
        "pytorch_model.bin",
    ],
)
def test_a_folder_with_one_file(tmp_path, name):
    (save if name.endswith("safetensors") else save_torch)(tmp_path / name)
    (tmp_path / "config.json").write_text('{"num_layers": 3}')
    (tmp_path / "notes.txt").write_text("no weights")
    for path in (tmp_path, tmp_path / name):
        with open_source(path, "dit") as source:
            np.testing.assert_array_equal(source.read("w"), np.ones(4, np.float32))
            assert source.config == {"num_layers": 3}
            assert source.files == (tmp_path / name, tmp_path / "config.json")


@pytest.mark.parametrize(
    "index_name", [f"{STEM}.safetensors.index.json", "model.safetensors.index.fp16.json"]
)
def test_a_folder_with_shards(tmp_path, index_name):
    index = sharded(tmp_path).rename(tmp_path / index_name)
    for path in (tmp_path, index):
        with open_source(path, "dit") as source:
            assert set(source.tensors) == {"a", "b", "c"}
            assert source.read("c").shape == (4,)
            assert source.config is None
            assert len(source.files) == 3


@pytest.mark.parametrize(
    ("component", "place"),
    [
        ("dit", "transformer/diffusion_pytorch_model.safetensors"),
        ("dit", "transformers/mp_rank_00_model_states.pt"),
        ("vae", "vae/pytorch_model.pt"),
        ("llama", "text_encoder/model.safetensors"),
        ("clip", "text_encoder_2/model.safetensors"),
    ],
)
def test_the_customary_subfolder_of_a_component(tmp_path, component, place):
    for other in ("scheduler", "tokenizer"):
        (tmp_path / other).mkdir()
    (save if place.endswith("safetensors") else save_torch)(tmp_path / place)
    with open_source(tmp_path, component) as source:
        assert source.files == (tmp_path / place,)
    with pytest.raises(InputError, match="holds no"):
        open_source(tmp_path, "clip" if component != "clip" else "dit")


def test_safetensors_go_before_pickles(tmp_path):
    save(tmp_path / "model.safetensors")
    save_torch(tmp_path / "pytorch_model.bin")
    with open_source(tmp_path, "clip") as source:
        assert source.container == "safetensors"


@pytest.mark.parametrize(
    "names",
    [
        (f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"),
        ("mp_rank_00_model_states.pt", "mp_rank_00_model_states_fp8.pt"),
        ("transformer/a.safetensors", "transformers/b.pt"),
    ],
)
def test_several_candidates_are_listed(tmp_path, names):
    for name in names:
        (save if name.endswith("safetensors") else save_torch)(tmp_path / name)
    with pytest.raises(InputError, match="several files") as caught:
        open_source(tmp_path, "dit")
    assert all(name in str(caught.value) for name in names)


def test_a_single_file_beside_an_index_is_ambiguous(tmp_path):
    sharded(tmp_path)
    save(tmp_path / "consolidated.safetensors")
    with pytest.raises(InputError, match="consolidated"):
        open_source(tmp_path, "dit")


def test_a_map_of_scales_is_no_candidate(tmp_path):
    save_torch(tmp_path / "w.pt")
    save_torch(tmp_path / "w_map.pt")
    with open_source(tmp_path, "dit") as source:
        assert source.files == (tmp_path / "w.pt",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": "../secret.safetensors"}, "not a plain .safetensors file name"),
        ({"a": "/etc/secret.safetensors"}, "not a plain .safetensors file name"),
        ({"a": "..\\secret.safetensors"}, "not a plain .safetensors file name"),
        ({"a": "c:secret.safetensors"}, "not a plain .safetensors file name"),
        ({"a": "passwd"}, "not a plain .safetensors file name"),
        ({"a": 3}, "has no weight_map"),
        ({"a": f"{STEM}-00003-of-00003.safetensors"}, "names 2 shards, absent are"),
        ({"d": f"{STEM}-00001-of-00002.safetensors"}, "'d' is not in"),
        ({"a": f"{STEM}-00002-of-00002.safetensors"}, "'a' is not in"),
        ({"c": None}, "'c' in .* is not in the index"),
        ({"total_size": 52}, "total_size is 52, the tensors have 48"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path, changes, message):
    save(tmp_path / "secret.safetensors", "a")
    folder = tmp_path / "model"
    folder.mkdir()
    sharded(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(folder, "dit")
    assert "\n" not in str(caught.value)


def test_an_index_with_a_tensor_in_two_shards(tmp_path):
    sharded(tmp_path)
    save(tmp_path / f"{STEM}-00001-of-00002.safetensors", "a", "b")
    with pytest.raises(CheckpointError, match=f"'b' lies in {STEM}-00001"):
        open_source(tmp_path, "dit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "has no weight_map|a JSON list"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "'a' occurs twice"),
        ('{"weight_map"', "not usable JSON"),
    ],
)
def test_an_index_that_is_none(tmp_path, text, message):
    path = sharded(tmp_path)
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        open_source(tmp_path, "dit")


def test_a_truncated_shard_is_named(tmp_path):
    sharded(tmp_path)
    shard = tmp_path / f"{STEM}-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"00002-of-00002.safetensors: is truncated"):
        open_source(tmp_path, "dit")


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1, "a": 2}', "\udcff"])
def test_a_broken_config_beside_the_weights(tmp_path, text):
    save(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"config\.json: the file is"):
        open_source(tmp_path, "dit")


def test_things_that_are_no_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "model.onnx").write_text("ONNX")
    for path, message in [
        (tmp_path, "holds no dit weights"),
        (tmp_path / "absent", "no such file or folder"),
        (tmp_path / "model.onnx", "files of this kind are not read"),
    ]:
        with pytest.raises(InputError, match=message):
            open_source(path, "dit")
    with pytest.raises(InputError, match="did you mean 'dit'"):
        open_source(tmp_path, "dti")


def test_parts_of_a_checkpoint(tmp_path):
    shard = sharded(tmp_path).with_name(f"{STEM}-00001-of-00002.safetensors")
    with pytest.raises(InputError, match="one shard of several"):
        open_source(shard, "dit")
    (tmp_path / f"{STEM}.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=r"without their \.safetensors\.index\.json"):
        open_source(tmp_path, "dit")
    pickles = tmp_path / "pickles"
    save_torch(pickles / "pytorch_model-00001-of-00002.bin")
    (pickles / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(InputError, match="sharded pickles"):
        open_source(pickles, "llama")
