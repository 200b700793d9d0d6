"""Float8 files, GGUF and LoRAs of the hub, alone and with --delete-source: the weights that the same files on a disk give."""

import json
import shutil
import sys

import convert_models as models
import float8_files
import gguf_files
import lora_files
import pytest
import safetensors.torch
import torch
from hub.hub_server import COMMIT, REPO, reached_alone
from test_convert_delete_source import Killed, shards

from convert import hub_files
from convert.__main__ import main
from qsjax import convert
from qsjax.checkpoint import Manifest, writer
from qsjax.errors import CheckpointError, InputError

HERE = f"hf://{REPO}"
SHARDS = 3
FILE, FOLDER, LORA = "split/dit_fp8.safetensors", "sharded", "loras/adapter_model.safetensors"
GGUF = "gguf/dit-q8.gguf"


def in_shards(folder, tensors):
    """Scales and settings lie in other files than their weights."""
    names = sorted(tensors, key=lambda name: (name.endswith(".weight"), name))
    weight_map = {}
    for number in range(SHARDS):
        shard = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        part = names[number * len(names) // SHARDS : (number + 1) * len(names) // SHARDS]
        models.save(folder / shard, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def in_gguf(tensors):
    """Matrices in Q8_0, the others in float32."""
    return gguf_files.gguf(
        {
            name: gguf_files.stored(
                "Q8_0" if tensor.ndim == 2 and tensor.shape[1] % 32 == 0 else "F32", tuple(tensor.shape), tensor.float().numpy()
            )[0]
            for name, tensor in tensors.items()
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    channels, _, _ = float8_files.as_float8(models.tencent(), "channels")
    models.save(folder / FILE, channels)
    in_shards(folder / FOLDER, float8_files.as_float8(models.tencent(), "comfy_quant")[0])
    (folder / GGUF).parent.mkdir()
    (folder / GGUF).write_bytes(in_gguf(models.tencent()))
    models.save(folder / LORA, lora_files.in_tencents_names("transformer")[0])
    (folder / "loras/adapter_config.json").write_text(json.dumps({"lora_alpha": 2.0}))
    models.config_file(folder)
    return folder


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    """Checkpoints of the same files on a disk."""
    out = tmp_path_factory.mktemp("out")
    return {
        path: convert(
            None, out / path.partition("/")[0], transformer=model / path, config=model / "dit.toml",
            lora=[(model / LORA, 0.5)], progress=False,
        ).manifest
        for path in (FILE, f"{FOLDER}/model.safetensors.index.json", GGUF)
    }  # fmt: skip


@pytest.fixture
def hub(model, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_files, "_HEADER", 1 << 12)  # else it is all of these files
    with reached_alone(monkeypatch, model, tmp_path) as server:
        yield server


def run(hub, tmp_path, path, lora=f"{HERE}/{LORA}:0.5", **options):
    return convert(None, tmp_path / "out", transformer=f"{HERE}/{path}", config=hub.folder / "dit.toml", lora=lora, progress=False, **options).manifest  # fmt: skip


def size(hub, path):
    return sum(file.stat().st_size for file in hub.folder.glob(path))


def same(manifest, expected):
    assert models.digests(manifest) == models.digests(expected)
    found, wanted = (each.components["dit"].source for each in (manifest, expected))
    published = [{**record, "origin": f"{HERE}/{LORA}@{COMMIT}"} for record in wanted["lora"]]
    assert found["lora"] == published
    assert found["sha256"] == wanted["sha256"]
    assert found["container"] == wanted["container"]


def test_a_float8_file_and_a_lora(hub, expected, tmp_path):
    total = size(hub, FILE) + size(hub, "loras/*")
    same(run(hub, tmp_path, FILE, verify=True), expected[FILE])
    assert hub.sent == total
    for offline in (False, True):
        found = run(hub, tmp_path, FILE, lora=[(f"{HERE}/loras", 0.5)], offline=offline)
        same(found, expected[FILE])
    with pytest.raises(InputError, match="exists already"):
        run(hub, tmp_path, FILE, lora=f"{HERE}/loras:0.25")
    assert hub.sent == total


@pytest.mark.parametrize("end", [1, 4, None])
def test_deleted_when_written_and_the_lora_stays(hub, expected, tmp_path, monkeypatch, end):
    stored = writer.store

    def dying(*arguments):
        nonlocal end
        if end == 0:
            end = None
            raise Killed
        end = None if end is None else end - 1
        return stored(*arguments)

    monkeypatch.setattr(writer, "store", dying)
    if end is not None:
        with pytest.raises(Killed):
            run(hub, tmp_path, FOLDER, delete_source=True)
    manifest = run(hub, tmp_path, FOLDER, delete_source=True)
    same(manifest, expected[f"{FOLDER}/model.safetensors.index.json"])
    assert shards(tmp_path) == ["adapter_model.safetensors"]
    total = size(hub, f"{FOLDER}/*") + size(hub, "loras/*")
    assert hub.sent == total
    assert run(hub, tmp_path, FOLDER, delete_source=True).data == manifest.data
    assert hub.sent == total
    assert (hub.folder / LORA).is_file()


def test_a_gguf_file_comes_whole(hub, expected, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("convert.early.free_bytes", lambda _: size(hub, GGUF))
        with pytest.raises(InputError, match="make room, name another place by QSJAX_CACHE"):
            run(hub, tmp_path, GGUF)
    assert hub.sent == size(hub, "loras/*.json")
    assert not list(tmp_path.glob("out*"))
    same(run(hub, tmp_path, GGUF, delete_source=True), expected[GGUF])
    assert hub.sent == size(hub, GGUF) + size(hub, "loras/*")
    assert len(list((tmp_path / "cache").rglob("*.gguf"))) == 1
    same(run(hub, tmp_path, GGUF, offline=True), expected[GGUF])


def test_without_gguf_nothing_is_fetched(hub, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"needs the package gguf; .*pip install '\.\[gguf\]'"):
        run(hub, tmp_path, GGUF, lora=())
    assert hub.sent == 0
    assert not list(tmp_path.glob("out*"))


def test_a_lora_that_does_not_fit_is_said_before_weights(hub, tmp_path, model):
    other = tmp_path / "other.safetensors"
    models.save(other, {"transformer.nothing.lora_A.weight": torch.zeros(2, 2)})
    for lora, message in [
        (other, "is of no layer of this transformer"),
        (f"{HERE}/{FOLDER}", "a LoRA is one .safetensors file, and this folder has model-00001"),
        (f"{HERE}/loras/adapter_config.json", "LoRAs are read from .safetensors files only"),
        (f"{HERE}/loras:strong", "is no strength"),
        (f"{HERE}/{FILE}", "is of no layer of this transformer"),
    ]:
        with pytest.raises((InputError, CheckpointError), match=message):
            run(hub, tmp_path, FOLDER, lora=lora)
    assert not list(tmp_path.glob("out*"))
    assert not any("-of-" in name for name in shards(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": f"{HERE}/{LORA}:1e9"}, "has the strength"),
        ({"lora": f"{HERE}/{LORA}:x"}, "is no strength"),
        ({"quantize": "rtn-w4a8x"}, "no preset"),
        ({"quantize": "w4a8"}, "is not METHOD-RECIPE"),
        ({"preset": "fast"}, "no preset"),
    ],
)
def test_options_that_are_none_are_said_before_the_hub_is_asked(hub, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run(hub, tmp_path, FILE, **options)
    assert hub.sent == 0
    assert not hub.asked


def test_room_for_a_lora(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("convert.early.free_bytes", lambda _: size(hub, LORA) - 1)
    with pytest.raises(InputError, match="make room, name another place by QSJAX_CACHE"):
        run(hub, tmp_path, FILE)
    assert LORA not in {name for name, _ in hub.asked}
    assert not list(tmp_path.glob("out*"))


def test_a_lora_of_the_hub_for_weights_of_this_disk(hub, model, expected, tmp_path, capsys):
    words = ["--transformer", str(model / FILE), "--config", str(model / "dit.toml")]
    words += ["--lora", f"{HERE}/{LORA}:0.5", str(tmp_path / "out")]
    assert main([*words, "--offline"]) == 2
    assert "was not downloaded" in capsys.readouterr().err
    assert main([*words, "--delete-source"]) == 2
    assert "--delete-source is for a model of the hub" in capsys.readouterr().err
    assert main(words) == 0
    assert main([*words, "--offline", "--verify"]) == 0
    same(Manifest.read(tmp_path / "out"), expected[FILE])
    plain = convert(None, tmp_path / "base", transformer=model / FILE, config=model / "dit.toml", progress=False)  # fmt: skip
    ours = convert(plain.checkpoint, tmp_path / "again", lora=f"{HERE}/{LORA}:0.5", progress=False)
    assert ours.manifest.components["dit"].source["container"] == "checkpoint"
    published = Manifest.read(tmp_path / "out").components["dit"].source["lora"]
    assert ours.manifest.components["dit"].source["lora"] == published
    # Where the bytes come from does not matter to what was made, and the addresses of all stay.
    local = [*words[:4], "--lora", f"{model / LORA}:0.5", str(tmp_path / "out"), "--verify"]
    assert main(local) == 0
    more = convert(ours.checkpoint, tmp_path / "more", lora=model / LORA, verify=True, progress=False)  # fmt: skip
    found = more.manifest.components["dit"].source["lora"]
    assert found[:1] == published
    assert "origin" not in found[1]


@pytest.mark.parametrize(
    ("spelling", "suffix", "change", "message"),
    [
        ("channels", ".scale_weight", lambda scale: scale * float("nan"), "the scale of .* is nan"),
        ("comfy_quant", ".comfy_quant", lambda _: float8_files.as_bytes({"format": "nvfp4"}), "quantized as 'nvfp4'"),
        ("comfy_quant", ".comfy_quant", lambda settings: settings[1:], "is not usable JSON"),
    ],
)  # fmt: skip
def test_what_is_found_late_leaves_nothing(hub, model, tmp_path, spelling, suffix, change, message):
    """It is in a part of the file that is not looked at before all of it comes."""
    folder = tmp_path / "model"
    tensors, _, _ = float8_files.as_float8(models.tencent(), spelling)
    name = next(name for name in tensors if name.endswith(suffix))
    tensors[name] = change(tensors[name])
    shutil.copytree(model, folder)
    safetensors.torch.save_file(tensors, folder / FILE)
    hub.folder = folder
    with pytest.raises(CheckpointError, match=message):
        run(hub, tmp_path, FILE)
    assert not list(tmp_path.glob("out*"))
