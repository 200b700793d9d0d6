"""The way back to PyTorch: bit for bit, in diffusers' layout, whole or not at all."""

import json

import convert_models as models
import pytest
import safetensors.torch
import torch

from convert import Sources, checkpoint_source, convert, export
from qsjax.checkpoint import sealed
from qsjax.errors import CheckpointError, InputError

VAE_TENSORS = {
    dtype: models.random_tensors("vae", models.VAE, "hunyuan", dtype=dtype)
    for dtype in (torch.bfloat16, torch.float32)
}


def make_checkpoint(folder, dtype):
    models.save_dit(folder / "transformer", models.diffusers(dtype))
    models.save(folder / "vae/diffusion_pytorch_model.safetensors", VAE_TENSORS[dtype])
    (folder / "vae/config.json").write_text(json.dumps(models.VAE.to_diffusers()))
    sources = Sources(transformer=folder / "transformer", vae=folder / "vae")
    convert(sources, folder / "checkpoint", progress=False, item_bytes=40_000)
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("bf16"), torch.bfloat16)


@pytest.fixture(scope="module")
def exported(checkpoint):
    export(checkpoint, checkpoint.with_name("exported"), progress=False)
    return checkpoint.with_name("exported")


def load(folder):
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= safetensors.torch.load_file(path)
    return tensors


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_round_trip_is_bit_exact_in_bfloat16(exported):
    assert_same_bits(load(exported / "transformer"), models.diffusers())
    assert_same_bits(load(exported / "vae"), VAE_TENSORS[torch.bfloat16])


def test_round_trip_is_bit_exact_in_float32(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "in", torch.float32)
    export(checkpoint, tmp_path / "out", progress=False)
    assert_same_bits(load(tmp_path / "out/transformer"), models.diffusers(torch.float32))
    assert_same_bits(load(tmp_path / "out/vae"), VAE_TENSORS[torch.float32])


def test_diffusers_loads_the_export(exported):
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel

    for folder, kind, expected in (
        ("transformer", HunyuanVideoTransformer3DModel, models.diffusers()),
        ("vae", AutoencoderKLHunyuanVideo, VAE_TENSORS[torch.bfloat16]),
    ):
        model = kind.from_pretrained(
            exported / folder, torch_dtype=torch.bfloat16, low_cpu_mem_usage=False
        )
        assert_same_bits(model.state_dict(), expected)


def test_shards_while_each_item_is_loaded_once(checkpoint, tmp_path, monkeypatch):
    loaded, load_item = [], checkpoint_source.load_item

    def count(manifest, component, item):
        loaded.append((component, item))
        return load_item(manifest, component, item)

    monkeypatch.setattr(checkpoint_source, "load_item", count)
    files = export(checkpoint, tmp_path / "out", progress=False, shard_bytes=60_000)
    assert all(path.is_file() for path in files)
    index = tmp_path / "out/transformer/diffusion_pytorch_model.safetensors.index.json"
    assert set(json.loads(index.read_text())["weight_map"]) == set(models.diffusers())
    assert_same_bits(load(tmp_path / "out/transformer"), models.diffusers())
    assert len(loaded) == len(set(loaded))


def test_nothing_appears_when_it_fails(checkpoint, tmp_path, monkeypatch):
    def fail(*_):
        raise CheckpointError("damaged")

    monkeypatch.setattr(checkpoint_source, "load_item", fail)
    with pytest.raises(CheckpointError, match="damaged"):
        export(checkpoint, tmp_path / "out", progress=False)
    assert not list(tmp_path.iterdir())


def test_existing_folder(checkpoint, tmp_path):
    out = tmp_path / "out"
    (out / "transformer").mkdir(parents=True)
    for overwrite in (False, True):  # only an earlier export is replaced
        with pytest.raises(InputError, match="exists already"):
            export(checkpoint, out, progress=False, overwrite=overwrite)
    out.rename(tmp_path / "out.tmp")
    with pytest.raises(InputError, match="is in the way"):
        export(checkpoint, out, progress=False)
    assert (tmp_path / "out.tmp/transformer").is_dir()


def test_the_same_export_finds_its_work_done(checkpoint, exported, caplog):
    before = {path: path.stat().st_mtime_ns for path in exported.rglob("*")}
    with caplog.at_level("INFO", logger="qsjax"):
        files = export(checkpoint, exported, progress=False)
    assert "is there already, made by the same command" in caplog.text
    assert {path.relative_to(exported).as_posix() for path in files} == {
        "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in exported.rglob("*")} == before
    with pytest.raises(InputError, match="exists already"):
        export(checkpoint, exported, progress=False, shard_bytes=1e4)


def test_earlier_export_is_replaced_on_request(checkpoint, exported):
    (exported / "vae/config.json").write_text("")
    export(checkpoint, exported, progress=False, overwrite=True)
    assert (exported / "vae/config.json").read_text() != ""
    (exported / "vae/config.json").unlink()
    with pytest.raises(InputError, match="exists already"):
        export(checkpoint, exported, progress=False)
    export(checkpoint, exported, progress=False, overwrite=True)
    assert [path.name for path in exported.parent.glob("exported*")] == ["exported"]


def test_unwritable(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        export(checkpoint, tmp_path / "file" / "out", progress=False)


def test_not_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        export(tmp_path, tmp_path / "out", progress=False)


def test_checkpoint_with_other_leaves(checkpoint, tmp_path):
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    items = manifest["components"]["dit"]["items"]
    items["double_blocks.0.img"]["double_blocks.0.img.scale"] = items["double_blocks.0.img"].pop(
        "double_blocks.0.img.proj.kernel"
    )
    (tmp_path / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(CheckpointError, match="it is quantized"):
        export(tmp_path, tmp_path / "out", progress=False)
