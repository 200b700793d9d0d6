"""What a conversion takes of the hub: folders, single files, revisions; of several that could be meant, none."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import convert_models as models
import pytest
from hub.hub_server import COMMIT, REPO, reached, reached_alone

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
    with reached_alone(monkeypatch, model, tmp_path) as server:
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


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """A hub with a copy of the bundled model, whose files a test may change."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model_directory(), model)
    monkeypatch.setenv("QSJAX_CACHE", str(tmp_path / "cache"))
    with reached(monkeypatch, model) as server:
        yield server


def sizes(hub, suffix=""):
    return sum(path.stat().st_size for path in hub.folder.rglob(f"*{suffix}") if path.is_file())


def refused_early(hub, tmp_path, message, source=HERE, **options):
    """Before any weights: only small files and headers have come, and nothing is written."""
    with pytest.raises((InputError, CheckpointError), match=message):
        convert(source, tmp_path / "out", progress=False, **options)
    assert hub.sent < 800_000  # of 9 MB: small files, and 128 kB of each file of weights
    assert not list(tmp_path.glob("out*"))
    assert not [path for path in (tmp_path / "cache").rglob("*.safetensors") if path.stat().st_size > 1 << 20]  # fmt: skip


def test_a_missing_template_is_said_first(whole, tmp_path, monkeypatch):
    (whole.folder / "prompt_template.json").unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused_early(whole, tmp_path, "pass a file as `prompt_template`")


def test_a_damaged_tokenizer_is_said_first(whole, tmp_path):
    (whole.folder / "tokenizer/tokenizer.json").write_text('{"model": {"vocab": {"a": 99999}}}')
    refused_early(whole, tmp_path, "has tokens with the id 99999")


def test_weights_that_do_not_fit_are_said_first(whole, tmp_path):
    values = json.loads((whole.folder / "transformer/config.json").read_text())
    values["num_layers"] += 1
    (whole.folder / "transformer/config.json").write_text(json.dumps(values))
    refused_early(whole, tmp_path, "transformer_blocks")


def test_an_option_is_said_first(whole, tmp_path):
    refused_early(whole, tmp_path, "is not METHOD-RECIPE", quantize="w4a8")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        convert(HERE, tmp_path / "out", progress=False)
    assert whole.sent < 800_000


def test_a_disk_for_download_and_result(whole, tmp_path, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=sizes(whole) + 1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = r"needs 9\.\d+ MB, and what is downloaded to the same disk 9\.\d+ MB at a time, together 19\.\d MB; 11\.\d MB are free; make room"
    refused_early(whole, tmp_path, message)
    monkeypatch.setattr("convert.early.shares_disk", lambda *_: False)
    convert(HERE, tmp_path / "out", progress=False)


def test_a_disk_of_the_cache(whole, tmp_path, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("convert.early.shares_disk", lambda *_: False)
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda place: usage._replace(free=8000) if place == tmp_path / "cache" else usage,
    )
    refused_early(whole, tmp_path, "the download needs .* MB, 8 kB are free; make room, name another place by QSJAX_CACHE")  # fmt: skip


def test_a_licence_is_said_first(whole, tmp_path):
    def gated(request):
        request.send_response(403)
        request.send_header("X-Error-Code", "GatedRepo")
        request.end_headers()

    whole.other["model_index.json"] = gated
    refused_early(whole, tmp_path, "is behind a licence; accept it")
    whole.other = {".safetensors": gated}
    refused_early(whole, tmp_path, "is behind a licence; accept it")


def test_a_token_that_is_not_taken(whole, tmp_path):
    whole.fault = (401, "")
    refused_early(whole, tmp_path, "401|no model of the hub, or a private one")
    whole.fault = (403, "")
    refused_early(whole, tmp_path, "the hub refuses it .403.; look whether HF_TOKEN")


def test_nothing_is_fetched_twice_or_for_nothing(whole, tmp_path):
    convert(HERE, tmp_path / "out", progress=False)
    assert whole.sent == sizes(whole)
    shutil.rmtree(tmp_path / "cache")
    whole.sent = 0
    convert(HERE, tmp_path / "out", progress=False)  # finds its work done
    assert whole.sent < 800_000


def test_a_torch_file_comes_behind_what_can_be_checked_without(whole, tmp_path, monkeypatch):
    import safetensors.torch
    import torch

    path = whole.folder / "transformer/diffusion_pytorch_model.safetensors"
    torch.save(safetensors.torch.load_file(path), path.with_suffix(".pt"))
    path.unlink()
    template = whole.folder / "prompt_template.json"
    kept = template.read_bytes()
    template.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        refused_early(whole, tmp_path, "pass a file as `prompt_template`")
    template.write_bytes(kept)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        refused_early(whole, tmp_path, "needs PyTorch")
    whole.sent = 0
    done = convert(HERE, tmp_path / "out", progress=False, quantize="rtn-w4a8")
    assert done.manifest.components["dit"].source["container"] == "torch .pt (bare)"
    assert whole.sent > path.with_suffix(".pt").stat().st_size


def test_a_header_that_is_none(hub, model, tmp_path):
    weights = model / "transformer/diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    for begin, message in [
        (b"\xff" * 8, "is no safetensors file"),
        (bytes(8), "is not usable JSON|hole"),
    ]:
        weights.write_bytes(begin + content[8:])
        with pytest.raises(CheckpointError, match=message):
            convert(f"{HERE}/transformer", tmp_path / "out", progress=False)
        shutil.rmtree(tmp_path / "cache")
