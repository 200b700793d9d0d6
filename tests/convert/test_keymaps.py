"""The key tables: closed at full size against the PyTorch originals, and exact both ways."""

import dataclasses

import convert_models
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from convert.keymaps import check, detect, expand, load_module
from convert.keymaps.detect import Layout
from qsjax.dit import DiT, DiTConfig
from qsjax.errors import CheckpointError, InputError
from qsjax.text.config import ClipConfig, LlamaConfig
from qsjax.vae import VAE, VAEConfig

FULL = DiTConfig.preset("hunyuan-video-13b")
PARAMETERS = 12_821_012_544
TINY_LLAMA = LlamaConfig(40, 8, 16, 4, 2, 1, 4, 1e-5, 1e4, 32)
TINY_CLIP = ClipConfig(40, 8, 16, 2, 2, 16, "quick_gelu", 1e-5, 39)


def shapes_of(rows):
    return {name: shape for row in rows for name, shape in row.sources.items()}


def meta_shapes(build):
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in build().state_dict().items()}


def total(shapes):
    return sum(int(np.prod(shape)) for shape in shapes.values())


def test_full_size_diffusers_transformer():
    from diffusers import HunyuanVideoTransformer3DModel

    expected = meta_shapes(HunyuanVideoTransformer3DModel)
    assert shapes_of(expand("dit", FULL, "diffusers")) == expected
    assert (len(expected), total(expected)) == (1264, PARAMETERS)


def test_full_size_tencent_names_are_those_diffusers_renames():
    shapes = shapes_of(expand("dit", FULL, "tencent"))
    assert (len(shapes), total(shapes)) == (856, PARAMETERS)
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    renamed = convert_models.by_diffusers(tensors, FULL.hidden_size)
    expected = shapes_of(expand("dit", FULL, "diffusers"))
    assert {name: tuple(t.shape) for name, t in renamed.items()} == expected


def test_full_size_comfy_names():
    tencent = shapes_of(expand("dit", FULL, "tencent"))
    renamed = {f"model.model.{convert_models.comfy_name(name)}": s for name, s in tencent.items()}
    assert shapes_of(expand("dit", FULL, "comfy")) == renamed


def test_model_without_guidance_embedder():
    plain = dataclasses.replace(FULL, guidance_embeds=False)
    assert len(expand("dit", plain, "tencent")) == 852


def test_full_size_vae():
    from diffusers import AutoencoderKLHunyuanVideo

    expected = meta_shapes(AutoencoderKLHunyuanVideo)
    assert shapes_of(expand("vae", VAEConfig(), "hunyuan")) == expected
    assert (len(expected), total(expected)) == (248, 246_478_803)


@pytest.mark.parametrize("size", [{}, {"spatial_compression_ratio": 4}], ids=["8x", "4x"])
def test_small_vae_levels(size):
    from diffusers import AutoencoderKLHunyuanVideo

    widths = (8, 8, 16, 16) if not size else (8, 8, 16)
    kinds = {
        f"{side}_block_types": (f"HunyuanVideo{side.title()}Block3D",) * len(widths)
        for side in ("down", "up")
    }
    options = {"block_out_channels": widths, "norm_num_groups": 4, "layers_per_block": 1, **size}
    expected = meta_shapes(lambda: AutoencoderKLHunyuanVideo(**options, **kinds))
    assert shapes_of(expand("vae", VAEConfig(**options), "hunyuan")) == expected


def test_llama_against_transformers():
    import transformers

    config = LlamaConfig(128_320, 4096, 14_336, 32, 32, 8, 128, 1e-5, 5e5, 8192)
    values = {k: v for k, v in config.to_transformers().items() if k != "architectures"}
    shapes = meta_shapes(
        lambda: transformers.LlamaModel(transformers.LlamaConfig.from_dict(values))
    )
    rows, ignored = check("llama", config, Layout("transformers"), shapes, source="llama")
    assert len(rows) == 1 + 30 * 9
    assert len(ignored) == 2 * 9 + 1
    assert shapes_of(rows).keys() | set(ignored) == shapes.keys()


def test_clip_against_transformers():
    import transformers

    config = ClipConfig(49_408, 768, 3072, 12, 12, 77, "quick_gelu", 1e-5, 49_407)
    values = {k: v for k, v in config.to_transformers().items() if k != "architectures"}
    shapes = meta_shapes(
        lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig.from_dict(values))
    )
    rows, ignored = check("clip", config, Layout("transformers"), shapes, source="clip")
    assert (shapes_of(rows), ignored) == (shapes, ())


LLAVA = {
    "": (),
    "model.": ("lm_head.weight",),
    "language_model.model.": (
        "language_model.lm_head.weight",
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
        "multi_modal_projector.linear_1.weight",
    ),
    "model.language_model.": (
        "lm_head.weight",
        "model.vision_tower.x.weight",
        "model.multi_modal_projector.linear_1.bias",
    ),
}


@pytest.mark.parametrize("prefix", LLAVA)
def test_llama_prefixes(prefix):
    used = shapes_of(expand("llama", TINY_LLAMA, "transformers", prefix))
    unused = [f"{prefix}layers.2.mlp.up_proj.weight", f"{prefix}norm.weight", *LLAVA[prefix]]
    shapes = used | dict.fromkeys(unused, (8,))
    layout = detect("llama", TINY_LLAMA, shapes, source="llava")
    assert layout == ("transformers", prefix)
    rows, ignored = check("llama", TINY_LLAMA, layout, shapes, source="llava")
    assert (shapes_of(rows), set(ignored)) == (used, set(unused))


def test_a_transformer_inside_a_larger_model():
    """As ComfyUI saves it, and stable-diffusion.cpp."""
    shapes = shapes_of(expand("dit", convert_models.DIT, "tencent", "model.diffusion_model."))
    layout = detect("dit", convert_models.DIT, shapes, source="file")
    assert layout == ("tencent", "model.diffusion_model.")
    rows, _ = check("dit", convert_models.DIT, layout, shapes, source="file")
    assert shapes_of(rows) == shapes


def test_bias_of_llama_is_surplus():
    shapes = shapes_of(expand("llama", TINY_LLAMA, "transformers"))
    shapes["layers.0.self_attn.q_proj.bias"] = (8,)
    with pytest.raises(CheckpointError, match=r"surplus: layers\.0\.self_attn\.q_proj\.bias"):
        check("llama", TINY_LLAMA, Layout("transformers"), shapes, source="x")


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_clip_prefixes(prefix):
    used = shapes_of(expand("clip", TINY_CLIP, "transformers", prefix))
    unused = [f"{prefix}embeddings.position_ids", "logit_scale", "text_projection.weight",
              "visual_projection.weight", "vision_model.encoder.layers.0.mlp.fc1.weight"]  # fmt: skip
    shapes = used | dict.fromkeys(unused, (1,))
    layout = detect("clip", TINY_CLIP, shapes, source="clip")
    rows, ignored = check("clip", TINY_CLIP, layout, shapes, source="clip")
    assert (shapes_of(rows), set(ignored)) == (used, set(unused))


CASES = [
    ("dit", convert_models.DIT, "tencent"),
    ("dit", convert_models.DIT, "diffusers"),
    ("dit", convert_models.DIT, "comfy"),
    ("vae", convert_models.VAE, "hunyuan"),
    ("llama", TINY_LLAMA, "transformers"),
    ("llama", TINY_LLAMA, "llama_cpp"),
    ("clip", TINY_CLIP, "transformers"),
]


@pytest.mark.parametrize(("component", "config", "layout"), CASES)
def test_there_and_back_is_exact(component, config, layout):
    rows = expand(component, config, layout)
    assert len({row.leaf for row in rows}) == len(rows)
    tensors = convert_models.numpy_of(convert_models.random_tensors(component, config, layout))
    left = dict(tensors)
    for row in rows:
        leaf = row.to_leaf(tensors.__getitem__)
        assert leaf.shape == row.shape
        assert leaf.flags.c_contiguous
        for name, tensor in row.to_torch(leaf).items():
            expected = left.pop(name)  # each tensor is used once
            assert tensor.dtype == expected.dtype
            np.testing.assert_array_equal(tensor.view(np.uint16), expected.view(np.uint16))
    assert not left


def test_layouts_give_the_same_leaves():
    made = {
        layout: {
            row.leaf: row.to_leaf(convert_models.numpy_of(tensors).__getitem__)
            for row in expand("dit", convert_models.DIT, layout)
        }
        for layout, tensors in (
            ("tencent", convert_models.tencent(torch.float32)),
            ("diffusers", convert_models.diffusers(torch.float32)),
        )
    }
    assert made["tencent"].keys() == made["diffusers"].keys()
    for leaf, array in made["tencent"].items():
        np.testing.assert_array_equal(made["diffusers"][leaf], array)
    t = convert_models.tencent(torch.float32)
    np.testing.assert_array_equal(  # shift first, as Tencent has it
        made["diffusers"]["final.modulation.bias"], t["final_layer.adaLN_modulation.1.bias"]
    )


def test_all_problems_in_one_message():
    shapes = shapes_of(expand("dit", convert_models.DIT, "diffusers"))
    del shapes["x_embedder.proj.bias"]
    shapes["lora.down.weight"] = (4, 32)
    shapes["transformer_blocks.0.ff.net.2.weight"] = (128, 32)
    with pytest.raises(CheckpointError) as error:
        check("dit", convert_models.DIT, Layout("diffusers"), shapes, source="w.safetensors")
    message = str(error.value)
    assert "\n" not in message
    assert "missing: x_embedder.proj.bias [32]" in message
    assert "surplus: lora.down.weight [4, 32]" in message
    assert "transformer_blocks.0.ff.net.2.weight expected [32, 128] found [128, 32]" in message


def test_long_lists_are_cut():
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        check("dit", convert_models.DIT, Layout("tencent"), {}, source="x")


def test_foreign_names_are_not_guessed():
    with pytest.raises(
        CheckpointError, match=r"is not a HunyuanVideo VAE .* first tensors are a\.b"
    ):
        detect("vae", convert_models.VAE, ["a.b"], source="file")


def test_unknown_names_of_components_and_layouts():
    with pytest.raises(InputError, match="no component 'unet'"):
        expand("unet", convert_models.DIT, "tencent")
    with pytest.raises(InputError, match="no layout 'flux'; known: tencent"):
        expand("dit", convert_models.DIT, "flux")


def test_module_from_memory():
    dit = nnx.eval_shape(lambda: DiT(convert_models.DIT, rngs=nnx.Rngs(0)))
    tensors = convert_models.tencent(torch.float32)
    load_module(dit, "dit", None, convert_models.numpy_of(tensors), convert_models.DIT)
    kernel = nnx.state(dit)["single_blocks"]["linear2"]["kernel"].get_value()
    expected = np.stack([tensors[f"single_blocks.{i}.linear2.weight"].T for i in range(2)])
    np.testing.assert_array_equal(kernel, expected)


def test_module_keeps_its_dtype_and_refuses_another_config():
    vae = nnx.eval_shape(lambda: VAE(convert_models.VAE, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    wider = dataclasses.replace(convert_models.VAE, latent_channels=8)
    for config in (convert_models.VAE, wider):
        tensors = convert_models.numpy_of(convert_models.random_tensors("vae", config, "hunyuan"))
        if config is wider:
            with pytest.raises(CheckpointError, match="the module wants"):
                load_module(vae, "vae", None, tensors, config)
        else:
            load_module(vae, "vae", "hunyuan", tensors, config)
    assert vae.post_quant_conv.kernel.get_value().dtype == jnp.bfloat16
