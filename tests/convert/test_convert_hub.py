"""What a conversion takes of the hub: folders, single files, revisions; of several that could be meant, none."""

import json
import shutil
from pathlib import Path

import convert_models as models
import pytest
from hub.hub_server import COMMIT, REPO, reached
from huggingface_hub import constants

from convert.__main__ import main
from convert.bundled import tiny_model_directory
from qsjax import convert
from qsjax.checkpoint import Manifest
from qsjax.errors import CheckpointError, InputError

HERE = f"hf://{REPO}"


@pytest.fixture
def model(tmp_path):
    """Many files; what belongs to them is written by the tests."""
    folder = tmp_path / "model"
    models.save_dit(folder / "transformer")
    (folder / "README.json").write_text("{}")
    return folder


@pytest.fixture
def hub(model, tmp_path, monkeypatch):
    monkeypatch.setenv("QSJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "theirs"))
    with reached(monkeypatch, model) as server:
        yield server


def in_shards(folder, count):
    """The transformer of a folder in so many shards with an index, tensors dealt out in the order of their names."""
    stem = "diffusion_pytorch_model"
    names = sorted(models.diffusers())
    weight_map = {}
    for number in range(count):
        shard = f"{stem}-{number + 1:05}-of-{count:05}.safetensors"
        part = names[number * len(names) // count : (number + 1) * len(names) // count]
        models.save(folder / shard, {name: models.diffusers()[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    (folder / f"{stem}.safetensors").unlink()
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def asked(hub):
    return sorted({name for name, _ in hub.asked})


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    source = models.save_dit(folder / "transformer")
    return models.digests(convert(source, folder / "out", progress=False).manifest)


def test_a_folder(hub, expected, tmp_path):
    done = convert(f"{HERE}/transformer", tmp_path / "out", progress=False)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert models.digests(done.manifest) == expected
    assert asked(hub) == ["transformer/config.json", weights]
    assert done.manifest.data["origin"] == f"{HERE}/transformer@{COMMIT}"
    source = done.manifest.components["dit"].source
    assert source["origin"] == f"{HERE}/{weights}@{COMMIT}"


def test_a_file_of_variants(hub, model, expected, tmp_path):
    """A repository as those that collect single files: the configuration is named, and is of the hub, too."""
    weights = model / "split/diffusion models/dit_bf16.safetensors"
    models.save(weights, models.tencent())
    models.save(weights.with_name("dit_fp8.safetensors"), models.tencent())
    file = f"{HERE}@main/split/diffusion%20models/dit_bf16.safetensors"
    config = f"{HERE}/transformer/config.json"
    done = convert(file, tmp_path / "out", config=config, progress=False)
    assert models.digests(done.manifest) == expected
    assert asked(hub) == ["split/diffusion models/dit_bf16.safetensors", "transformer/config.json"]
    again = convert(None, tmp_path / "out", transformer=file, config=config, progress=False)
    assert again.manifest.data["identity"] == done.manifest.data["identity"]
    for source, named in [
        (f"{HERE}/split", {}),
        (HERE, {}),
        (None, {"transformer": f"{HERE}/split/diffusion%20models"}),
    ]:
        with pytest.raises(InputError) as caught:
            convert(source, tmp_path / "other", progress=False, **named)
        assert "dit_bf16.safetensors, " in str(caught.value)
        assert "dit_fp8.safetensors" in str(caught.value)
        assert "name" in str(caught.value)
    assert asked(hub) == ["split/diffusion models/dit_bf16.safetensors", "transformer/config.json"]


def test_a_revision(hub, expected, tmp_path):
    hub.revisions = {"my/branch"}
    done = convert(f"{HERE}/transformer@my/branch", tmp_path / "out", progress=False)
    assert models.digests(done.manifest) == expected
    assert done.manifest.data["origin"] == f"{HERE}/transformer@{COMMIT}"
    with pytest.raises(InputError, match="has no revision 'main'"):
        convert(HERE, tmp_path / "other", progress=False)


def test_shards(hub, model, expected, tmp_path):
    in_shards(model / "transformer", 3)
    (model / "transformer/notes.txt").write_text("not needed")
    done = convert(f"{HERE}/transformer", tmp_path / "out", progress=False)
    assert models.digests(done.manifest) == expected
    assert len(asked(hub)) == 5
    shard = f"{HERE}/transformer/diffusion_pytorch_model-00001-of-00003.safetensors"
    with pytest.raises(InputError, match="is one shard of several; name its folder"):
        convert(shard, tmp_path / "other", progress=False)


def test_an_index_of_files_that_are_not_listed(hub, model, tmp_path):
    in_shards(model / "transformer", 3)
    (model / "transformer/diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="names 3 shards, and the hub does not list"):
        convert(f"{HERE}/transformer", tmp_path / "out", progress=False)
    assert not any(name.endswith(".safetensors") for name in asked(hub))


def test_parts_from_here_and_there(hub, model, tmp_path):
    tiny = tiny_model_directory()
    for part in ("text_encoder_2", "tokenizer_2"):
        shutil.copytree(tiny / part, model / part)
    models.save(model / "vae.safetensors", {})
    done = convert(
        tiny / "transformer",
        tmp_path / "out",
        text_encoder_2=f"{HERE}/text_encoder_2",
        tokenizer_2=f"{HERE}/tokenizer_2",
        progress=False,
    )
    assert set(done.manifest.components) == {"dit", "clip"}
    assert "origin" not in done.manifest.data
    assert done.manifest.components["clip"].source["origin"].startswith(f"{HERE}/text_encoder_2/")
    assert "origin" not in done.manifest.components["dit"].source
    files = ["text_encoder_2/config.json", "text_encoder_2/model.safetensors"]
    files += [f"tokenizer_2/{path.name}" for path in (model / "tokenizer_2").iterdir()]
    assert asked(hub) == sorted(files)


@pytest.mark.parametrize(
    ("argument", "path", "message"),
    [
        ("tokenizer", "transformer", "has neither tokenizer.json nor merges.txt"),
        ("tokenizer_2", "README.json", "has neither tokenizer.json nor merges.txt"),
        ("config", "transformer", "is a folder, and config is one file; name it"),
        ("transformer", "README.json", "files of this kind are not read"),
        ("vae", "nothing", "holds nothing that is converted"),
        ("vae", "README.json", "files of this kind are not read"),
        ("text_encoder", "", "holds no llama weights"),
    ],
)
def test_what_a_part_cannot_be(hub, tmp_path, argument, path, message):
    address = f"{HERE}/{path}".rstrip("/")
    with pytest.raises(InputError, match=message):
        convert(f"{HERE}/transformer", tmp_path / "out", progress=False, **{argument: address})
    assert not any(name.endswith(".safetensors") for name in asked(hub))


def test_the_whole_model_takes_what_its_index_names(tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    shutil.copytree(tiny_model_directory(), model)
    models.save(model / "other/weights.safetensors", {})
    models.save(model / "weights.safetensors", {})
    (model / "transformer/same.pt").write_bytes(bytes(2000))
    (model / "vae/notes.txt").write_text("")
    monkeypatch.setenv("QSJAX_CACHE", str(tmp_path / "cache"))
    with reached(monkeypatch, model) as hub:
        assert main([HERE, str(tmp_path / "first")]) == 0
        needed = {path.relative_to(tiny_model_directory()).as_posix() for path in tiny_model_directory().rglob("*.*")}  # fmt: skip
        assert set(asked(hub)) == needed
    assert Manifest.read(tmp_path / "first").data["origin"] == f"{HERE}@{COMMIT}"
    assert main([HERE, str(tmp_path / "second"), "--offline", "--verify"]) == 0
    assert main([str(tiny_model_directory()), str(tmp_path / "third"), "--offline"]) == 2
    assert "--offline is for a model of the hub" in capsys.readouterr().err


def test_a_small_file_that_is_none(hub, model, tmp_path):
    (model / "transformer/config.json").write_bytes(bytes(25 << 20))
    with pytest.raises(InputError, match="far more than such a file needs"):
        convert(f"{HERE}/transformer", tmp_path / "out", progress=False)
    assert hub.sent == 0


def test_an_address_that_became_a_path(hub, expected, tmp_path):
    done = convert(Path(f"{HERE}/transformer"), tmp_path / "out", progress=False)
    assert models.digests(done.manifest) == expected


def test_json_says_where_it_came_from(hub, tmp_path, capsys):
    assert main([f"{HERE}/transformer", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["components"]["dit"]["origin"].endswith(f".safetensors@{COMMIT}")
