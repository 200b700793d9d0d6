"""LoRA: what torch, and PEFT with diffusers, make of the same files; recorded, repeated, exported, and refused by name."""

import hashlib
import json
from pathlib import Path

import convert_models as models
import jax.numpy as jnp
import lora_files
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from dit.dit_pairs import SMALL, diffusers_dit, inputs, run_diffusers, run_ours

import qsjax
from convert import Sources, convert, export, verify
from convert.__main__ import main as command
from convert.component import open_components
from convert.lora.modules import layers, underscored
from convert.lora.request import Lora, one_or_several, parse
from qsjax.checkpoint import Manifest
from qsjax.dit import load_dit
from qsjax.dit.config import DiTConfig
from qsjax.errors import CheckpointError, InputError

TENCENT = ("transformer", "diffusion_model", "base_model.model", "bare", "alpha", "comfy", "kohya", "kohya split", "i2v")  # fmt: skip
BASES = {"tencent": models.tencent, "diffusers": models.diffusers, "comfy": lambda dtype: in_comfy(models.tencent(dtype))}  # fmt: skip


def in_comfy(tensors):
    return {f"model.model.{models.comfy_name(name)}": tensor for name, tensor in tensors.items()}


def sources(folder, base, *loras, dtype=torch.bfloat16):
    path = models.save(folder / f"{base}.safetensors", BASES[base](dtype))
    return Sources(transformer=path, config=models.config_file(folder), lora=loras)


def lora(folder, tensors, strength=1.0, name="lora.safetensors", metadata=None):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, folder / name, metadata)
    return Lora(folder / name, strength)


def weights(given):
    """Every tensor as it is read before it is stored, and the dtype in which it is kept."""
    with open_components(given, None) as components:
        source = components["dit"].source
        kept = {name: source.stored_dtype(name) for name in source.tensors}
        return {name: source.read(name) for name in source.tensors}, kept


def close(found, expected):
    """To 1e-6, relative to the values that are added."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        tensor = tensor.float().numpy()
        difference = np.abs(found[name].astype(np.float32) - tensor)
        np.testing.assert_array_less(difference, 1e-6 * np.abs(tensor).max() + 1e-9, err_msg=name)


@pytest.mark.parametrize("spelling", TENCENT)
@pytest.mark.parametrize("base", BASES)
def test_weights_are_torchs(spelling, base, tmp_path):
    tensors, changes = lora_files.in_tencents_names(spelling, 0.75)
    found, kept = weights(sources(tmp_path, base, lora(tmp_path / "l", tensors, 0.75)))
    merged = lora_files.added(models.tencent(), changes)
    by_name = {
        "tencent": lambda: merged,
        "diffusers": lambda: models.by_diffusers(merged, 32),
        "comfy": lambda: in_comfy(merged),
    }[base]()
    close(found, by_name)
    assert set(kept.values()) == {np.dtype(ml_dtypes.bfloat16)}


def test_diffusers_names(tmp_path):
    base = models.diffusers()
    tensors, changes = lora_files.in_diffusers_names(base, 2.0)
    one = lora(tmp_path / "l", tensors, 2.0)
    found, _ = weights(sources(tmp_path, "diffusers", one))
    close(found, lora_files.added(base, changes))
    # Joined to Tencent's layers, halves of the last modulation exchanged, it is the same transformer.
    joined = models.by_diffusers(
        {k: torch.from_numpy(v.astype(np.float32)) for k, v in weights(sources(tmp_path, "tencent", one))[0].items()},
        32,
    )  # fmt: skip
    close({k: v.numpy() for k, v in joined.items()}, lora_files.added(base, changes))


def test_several_with_strengths_add_up(tmp_path):
    first, changes = lora_files.in_tencents_names("kohya split", 0.5)
    second, more = lora_files.in_tencents_names("transformer", -0.25, lora_files.LAYERS[:9])
    loras = (lora(tmp_path / "a", first, 0.5), lora(tmp_path / "b", second, -0.25), lora(tmp_path / "c", first, 0.0))  # fmt: skip
    found, _ = weights(sources(tmp_path, "tencent", *loras))
    total = {name: change + more.get(name, 0) for name, change in changes.items()}
    close(found, lora_files.added(models.tencent(), total))


@pytest.mark.parametrize("where", ["header", "beside"])
def test_alpha_of_a_configuration(where, tmp_path):
    """diffusers keeps it in the header, PEFT in adapter_config.json; alpha_pattern is for single layers."""
    base, alone = models.diffusers(), "transformer_blocks.0.attn.to_k"
    tensors, changes = lora_files.in_diffusers_names(base, alpha=12.0)
    changes[f"{alone}.weight"] = changes[f"{alone}.weight"] / 12 * 2
    values = {"r": 4, "lora_alpha": 12, "alpha_pattern": {f"^{alone}": 2}, "use_rslora": False}
    if where == "header":
        packed = {f"transformer.{key}": value for key, value in values.items()}
        metadata = {"lora_adapter_metadata": json.dumps(packed | {"text_encoder.r": 8})}
        one = lora(tmp_path / "l", tensors, metadata=metadata)
    else:
        renamed = {k.replace("transformer.", "base_model.model.", 1): v for k, v in tensors.items()}
        one = lora(tmp_path / "l", renamed, name="adapter_model.safetensors")
        (tmp_path / "l" / "adapter_config.json").write_text(json.dumps(values))
    found, _ = weights(sources(tmp_path, "diffusers", one))
    close(found, lora_files.added(base, changes))


def test_rank_stabilized(tmp_path):
    tensors, changes = lora_files.in_tencents_names("transformer")
    values = {"transformer.lora_alpha": 4, "transformer.use_rslora": True}
    metadata = {"lora_adapter_metadata": json.dumps(values)}
    found, _ = weights(sources(tmp_path, "tencent", lora(tmp_path / "l", tensors, metadata=metadata)))  # fmt: skip
    close(found, lora_files.added(models.tencent(), {k: 2 * v for k, v in changes.items()}))


def test_rows_and_chunks(tmp_path, monkeypatch):
    tensors, _ = lora_files.in_diffusers_names(models.diffusers())
    given = sources(tmp_path, "tencent", lora(tmp_path / "l", tensors))
    found, _ = weights(given)
    monkeypatch.setattr("convert.lora.merged._CHUNK", 1000)
    with open_components(given, None) as components:
        for name, whole in found.items():
            for start, stop in ((0, len(whole)), (1, 7), (len(whole) - 9, len(whole) - 2)):
                part = components["dit"].source.read(name, (max(start, 0), stop))
                np.testing.assert_allclose(part.astype(np.float32), whole[max(start, 0) : stop].astype(np.float32), rtol=2e-7, atol=0)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """diffusers' model, a LoRA for all its layers, and our merged checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    model = diffusers_dit(SMALL)
    base = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    models.save_dit(folder / "transformer", base, SMALL)
    tensors, changes = lora_files.in_diffusers_names(base, 0.02)
    given = Sources(transformer=folder / "transformer", lora=(lora(folder, tensors, 0.02),))
    convert(given, folder / "c", progress=False)
    return model, base, tensors, changes, given, folder / "c"


def test_the_float32_model_computes_what_diffusers_does(trained):
    model, base, _, changes, _, checkpoint = trained
    model.load_state_dict(lora_files.added(base, changes))
    values = inputs(SMALL)
    found = run_ours(load_dit(checkpoint, dtype=jnp.float32), values)
    np.testing.assert_allclose(found, run_diffusers(model, values), atol=1e-4, rtol=0)


def test_peft_makes_the_same_of_the_file(trained):
    pytest.importorskip("peft")
    model, base, tensors, _, given, checkpoint = trained
    model.load_state_dict(base)
    model.load_lora_adapter(tensors, prefix="transformer", adapter_name="one")
    model.set_adapters("one", 0.02)
    values = inputs(SMALL)
    found = run_ours(load_dit(checkpoint, dtype=jnp.float32), values)
    np.testing.assert_allclose(found, run_diffusers(model, values), atol=1e-4, rtol=0)
    model.fuse_lora()
    model.unload_lora()
    close(weights(given)[0], model.state_dict())


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """A float32 transformer with a LoRA: its sources and its checkpoint."""
    folder = tmp_path_factory.mktemp("merged")
    one = lora(folder, lora_files.in_tencents_names("kohya")[0], 0.5, "style.safetensors")
    given = sources(folder, "tencent", one, dtype=torch.float32)
    return given, convert(given, folder / "checkpoint", progress=False)


def test_the_manifest_knows_the_files(merged, tmp_path, caplog):
    given, manifest = merged
    (record,) = manifest.data["components"]["dit"]["source"]["lora"]
    assert record == {
        "name": "style.safetensors",
        "sha256": hashlib.sha256(given.lora[0].path.read_bytes()).hexdigest(),
        "strength": 0.5,
        "layers": len(lora_files.LAYERS),
    }
    assert Manifest.read(manifest.directory).data == json.loads(json.dumps(manifest.data))
    with caplog.at_level("INFO", logger="qsjax"):
        convert(given, manifest.directory, progress=False)
    assert "is there already, made by the same command" in caplog.text
    for other in (Lora(given.lora[0].path, 0.25), lora(tmp_path, lora_files.in_tencents_names("kohya")[0] | {"lora_unet_img_in_proj.alpha": torch.tensor(1.0)}, 0.5)):  # fmt: skip
        changed = Sources(transformer=given.transformer, config=given.config, lora=(other,))
        with pytest.raises(InputError, match="exists already"):
            convert(changed, manifest.directory, progress=False)
        with pytest.raises(InputError, match="give `lora` as it was given"):
            verify(manifest.directory, changed, progress=False)
    without = Sources(transformer=given.transformer, config=given.config)
    with pytest.raises(InputError, match="and the sources have no LoRA; give"):
        verify(manifest.directory, without, progress=False)
    found = verify(manifest.directory, given, progress=False)
    assert found.from_source == found.leaves


def test_quantized_and_exported_are_the_merged_weights(merged, tmp_path):
    """Quantizing on the way gives the bits that quantizing the exported transformer gives; so it does from our own checkpoint."""
    given, manifest = merged
    export(manifest.directory, tmp_path / "exported", progress=False)
    exported = Sources(transformer=tmp_path / "exported/transformer")
    expected = convert(exported, tmp_path / "a", quantize="rtn-w4a8", progress=False)
    found = convert(given, tmp_path / "b", quantize="rtn-w4a8", progress=False)
    assert models.digests(found) == models.digests(expected)
    assert verify(tmp_path / "b", given, progress=False).from_source > 0
    plain = Sources(transformer=given.transformer, config=given.config)
    convert(plain, tmp_path / "base", progress=False)
    again = Sources.find(tmp_path / "base", given.lora)
    ours = convert(again, tmp_path / "c", quantize="rtn-w4a8", progress=False)
    assert models.digests(ours) == models.digests(expected)
    assert ours.data["components"]["dit"]["source"]["container"] == "checkpoint"
    with pytest.raises(CheckpointError, match=r"it is quantized\); name the checkpoint it was made from"):  # fmt: skip
        convert(Sources.find(tmp_path / "c", given.lora), tmp_path / "d", progress=False)


def test_all_of_a_checkpoint_of_ours(tiny_checkpoint, tmp_path, capsys):
    config = DiTConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in Manifest.read(tiny_checkpoint).config("dit").items()})  # fmt: skip
    place = layers(config)["double_blocks.0.img_attn_qkv"]
    down, up = torch.randn(2, place.shape[1]), torch.randn(place.shape[0], 2)
    name = "transformer.double_blocks.0.img_attn_qkv"
    one = lora(tmp_path, {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up})
    args = [str(tiny_checkpoint), str(tmp_path / "c"), "--lora", f"{one.path}:0.5", "--verify"]
    assert command(args) == 0
    assert "dit has merged: lora.safetensors (strength 0.5)" in capsys.readouterr().out
    before, after = Manifest.read(tiny_checkpoint), Manifest.read(tmp_path / "c")
    for component in before.components:
        old, new = models.digests(before, component), models.digests(after, component)
        differ = {leaf for leaf in old if old[leaf] != new[leaf]}
        assert differ == ({"double_blocks.0.img.qkv.kernel"} if component == "dit" else set())
        assert before.config(component) == after.config(component)
    for key in ("prompt", "scheduler", "generation", "files", "tiling"):
        assert before.data[key] == after.data[key]
    assert command([*args[:2], "--export", "--lora", "a"]) == 2
    assert "run it without --lora" in capsys.readouterr().err
    done = qsjax.convert(tiny_checkpoint, tmp_path / "c", lora=[(one.path, 0.5)], progress=False)
    assert done.manifest is not None
    # Merged into what has LoRAs already: the manifest tells of all.
    more = qsjax.convert(tmp_path / "c", tmp_path / "d", lora=one.path, verify=True, progress=False)
    assert more.manifest is not None
    records = more.manifest.data["components"]["dit"]["source"]["lora"]
    assert [record["strength"] for record in records] == [0.5, 1.0]


def test_what_is_asked_for(tmp_path):
    (tmp_path / "a:0.5").touch()
    assert parse("a.safetensors") == ("a.safetensors", 1.0)
    assert parse("a.safetensors:-0.5") == ("a.safetensors", -0.5)
    assert parse("hf://o/n/a.safetensors") == ("hf://o/n/a.safetensors", 1.0)
    assert parse("hf://o/n/a.safetensors@v1:2") == ("hf://o/n/a.safetensors@v1", 2.0)
    assert parse(Path("hf://o/n/a.safetensors")) == ("hf:/o/n/a.safetensors", 1.0)
    assert parse("hf:0.5") == ("hf", 0.5)
    assert parse(tmp_path / "a:0.5") == (str(tmp_path / "a:0.5"), 1.0)
    assert parse((tmp_path / "a", 2)) == (str(tmp_path / "a"), 2.0)
    with pytest.raises(InputError, match="is no strength; give FILE or FILE:STRENGTH"):
        parse("a.safetensors:strong")
    assert one_or_several("a") == ("a",)
    assert one_or_several(("a", 0.5)) == (("a", 0.5),)
    assert one_or_several(["a", ("b", 1)]) == ("a", ("b", 1))
    for strength in (float("nan"), float("inf"), 1e3):
        with pytest.raises(InputError, match="has the strength"):
            Lora(tmp_path / "a", strength)
    with pytest.raises(InputError, match="does not exist; give an existing file for `lora`"):
        Sources(transformer=tmp_path, lora=(Lora(tmp_path / "absent"),))
    with pytest.raises(InputError, match="is for the transformer, and none is to be converted"):
        Sources(vae=tmp_path, lora=(Lora(tmp_path / "a:0.5"),))


def test_names_with_underscores_are_one_layer_each():
    """Whatever layouts share an underscored name in, it is the same rows."""
    named = layers(DiTConfig.preset("hunyuan-video-13b"))
    flat = underscored(named)
    assert all(flat[name.replace(".", "_")] == place for name, place in named.items())
