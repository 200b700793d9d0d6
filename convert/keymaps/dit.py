"""HunyuanVideo's transformer: Tencent's, diffusers' and ComfyUI's names for the same 12.8 billion numbers.

"tencent" is what Tencent's `.pt` files and ComfyUI's first layout hold, "diffusers" is
`HunyuanVideoTransformer3DModel`, "comfy" is ComfyUI's second layout (prefix `model.model.`, names after Flux).
"""

from convert.keymaps.table import Entry, copied, linear
from qsjax.dit.config import DiTConfig

PREFIXES = {
    "tencent": ("", "model.diffusion_model."),
    "diffusers": ("",),
    "comfy": ("model.model.",),
}
_SINUSOID = 256  # width of the sinusoidal embedding of time and guidance, no option in the original
_REFINER_MLP = 4  # the refiner's MLP ratio is fixed, whatever mlp_ratio says


def ignored(config: DiTConfig, prefix: str) -> tuple[str, ...]:
    """Nothing in a transformer file may be left over."""
    return ()


def table(config: DiTConfig) -> tuple[Entry, ...]:
    """The key table of a transformer of this size."""
    return (*_ends(config), *_refiner(config), *_double(config), *_single(config))


def _ends(config: DiTConfig) -> tuple[Entry, ...]:
    d = config.hidden_size
    cells = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    guidance = _embedder(
        "guidance_embed", _SINUSOID, d, "ends",
        tencent=("guidance_in.mlp.0", "guidance_in.mlp.2"),
        diffusers="time_text_embed.guidance_embedder",
        comfy="guidance_in",
    )  # fmt: skip
    return (
        *linear(
            "patch_embed", d, (config.in_channels, *config.patch_size), "ends", transform="patch",
            tencent="img_in.proj", diffusers="x_embedder.proj", comfy="img_in.proj",
        ),
        *_embedder(
            "time_embed", _SINUSOID, d, "ends",
            tencent=("time_in.mlp.0", "time_in.mlp.2"),
            diffusers="time_text_embed.timestep_embedder",
            comfy="time_in",
        ),
        *(guidance if config.guidance_embeds else ()),
        *_embedder(
            "pooled_embed", config.pooled_dim, d, "ends",
            tencent=("vector_in.in_layer", "vector_in.out_layer"),
            diffusers="time_text_embed.text_embedder",
            comfy="vector_in",
        ),
        *linear(
            "final.modulation", 2 * d, d, "ends", swapped="diffusers",
            tencent="final_layer.adaLN_modulation.1",
            diffusers="norm_out.linear",
            comfy="final_layer.adaLN_modulation.1",
        ),
        *linear(
            "final.linear", cells * config.out_channels, d, "ends",
            tencent="final_layer.linear", diffusers="proj_out", comfy="final_layer.linear",
        ),
    )  # fmt: skip


def _refiner(config: DiTConfig) -> tuple[Entry, ...]:
    d, n, group = config.hidden_size, config.num_refiner_blocks, "refiner.blocks.{i}"
    t = "txt_in.individual_token_refiner.blocks.{i}"
    h = "context_embedder.token_refiner.refiner_blocks.{i}"
    c = "txt_in.individual_token_refiner.blocks.{i}"
    return (
        *_embedder(
            "refiner.time_embed", _SINUSOID, d, "ends",
            tencent=("txt_in.t_embedder.mlp.0", "txt_in.t_embedder.mlp.2"),
            diffusers="context_embedder.time_text_embed.timestep_embedder",
            comfy="txt_in.t_embedder",
        ),
        *_embedder(
            "refiner.text_embed", config.text_dim, d, "ends",
            tencent=("txt_in.c_embedder.linear_1", "txt_in.c_embedder.linear_2"),
            diffusers="context_embedder.time_text_embed.text_embedder",
            comfy="txt_in.c_embedder",
        ),
        *linear(
            "refiner.proj_in", d, config.text_dim, "ends",
            tencent="txt_in.input_embedder",
            diffusers="context_embedder.proj_in",
            comfy="txt_in.input_embedder",
        ),
        *(
            copied(
                f"{group}.{name}.{ours}", (d,), group, count=n,
                tencent=f"{t}.{name}.{theirs}",
                diffusers=f"{h}.{name}.{theirs}",
                comfy=f"{c}.{name}.{theirs}",
            )
            for name in ("norm1", "norm2")
            for ours, theirs in (("scale", "weight"), ("bias", "bias"))
        ),
        *linear(
            f"{group}.qkv", (d, d, d), d, group, count=n,
            tencent=f"{t}.self_attn_qkv",
            diffusers=(f"{h}.attn.to_q", f"{h}.attn.to_k", f"{h}.attn.to_v"),
            comfy=f"{c}.self_attn.qkv",
        ),
        *linear(
            f"{group}.proj", d, d, group, count=n,
            tencent=f"{t}.self_attn_proj", diffusers=f"{h}.attn.to_out.0", comfy=f"{c}.self_attn.proj",
        ),
        *linear(
            f"{group}.fc1", _REFINER_MLP * d, d, group, count=n,
            tencent=f"{t}.mlp.fc1", diffusers=f"{h}.ff.net.0.proj", comfy=f"{c}.mlp.0",
        ),
        *linear(
            f"{group}.fc2", d, _REFINER_MLP * d, group, count=n,
            tencent=f"{t}.mlp.fc2", diffusers=f"{h}.ff.net.2", comfy=f"{c}.mlp.2",
        ),
        # Two gates, in the same order everywhere although diffusers calls the layer norm_out as it does the last one.
        *linear(
            f"{group}.modulation", 2 * d, d, group, count=n,
            tencent=f"{t}.adaLN_modulation.1",
            diffusers=f"{h}.norm_out.linear",
            comfy=f"{c}.adaLN_modulation.1",
        ),
    )  # fmt: skip


def _double(config: DiTConfig) -> tuple[Entry, ...]:
    attn = "transformer_blocks.{i}.attn"
    image = _stream(
        config, "img", h_norm="norm1", h_mlp="ff",
        h_qkv=(f"{attn}.to_q", f"{attn}.to_k", f"{attn}.to_v"),
        h_proj=f"{attn}.to_out.0", h_qk_norm=(f"{attn}.norm_q", f"{attn}.norm_k"),
    )  # fmt: skip
    text = _stream(
        config, "txt", h_norm="norm1_context", h_mlp="ff_context",
        h_qkv=(f"{attn}.add_q_proj", f"{attn}.add_k_proj", f"{attn}.add_v_proj"),
        h_proj=f"{attn}.to_add_out", h_qk_norm=(f"{attn}.norm_added_q", f"{attn}.norm_added_k"),
    )  # fmt: skip
    return (*image, *text)


def _stream(
    config: DiTConfig, stream: str, *, h_norm: str, h_mlp: str, h_qkv: tuple[str, ...],
    h_proj: str, h_qk_norm: tuple[str, str],
) -> tuple[Entry, ...]:  # fmt: skip
    """One of the two streams of the double blocks; `h_` marks diffusers' names."""
    d, n, mlp = config.hidden_size, config.num_double_blocks, config.mlp_size
    group = f"double_blocks.{{i}}.{stream}"
    t, h = f"double_blocks.{{i}}.{stream}", "transformer_blocks.{i}"
    return (
        *linear(
            f"{group}.modulation", 6 * d, d, group, count=n,
            tencent=f"{t}_mod.linear", diffusers=f"{h}.{h_norm}.linear", comfy=f"{t}_mod.lin",
        ),
        *linear(
            f"{group}.qkv", (d, d, d), d, group, count=n,
            tencent=f"{t}_attn_qkv", diffusers=h_qkv, comfy=f"{t}_attn.qkv",
        ),
        *(
            copied(
                f"{group}.{q}_norm.scale", (config.head_dim,), group, count=n,
                tencent=f"{t}_attn_{q}_norm.weight",
                diffusers=f"{h_name}.weight",
                comfy=f"{t}_attn.norm.{word}_norm.scale",
            )
            for q, word, h_name in zip("qk", ("query", "key"), h_qk_norm, strict=True)
        ),
        *linear(
            f"{group}.proj", d, d, group, count=n,
            tencent=f"{t}_attn_proj", diffusers=h_proj, comfy=f"{t}_attn.proj",
        ),
        *linear(
            f"{group}.fc1", mlp, d, group, count=n,
            tencent=f"{t}_mlp.fc1", diffusers=f"{h}.{h_mlp}.net.0.proj", comfy=f"{t}_mlp.0",
        ),
        *linear(
            f"{group}.fc2", d, mlp, group, count=n,
            tencent=f"{t}_mlp.fc2", diffusers=f"{h}.{h_mlp}.net.2", comfy=f"{t}_mlp.2",
        ),
    )  # fmt: skip


def _single(config: DiTConfig) -> tuple[Entry, ...]:
    d, n, mlp = config.hidden_size, config.num_single_blocks, config.mlp_size
    group = "single_blocks.{i}"
    t, h = "single_blocks.{i}", "single_transformer_blocks.{i}"
    return (
        *linear(
            f"{group}.modulation", 3 * d, d, group, count=n,
            tencent=f"{t}.modulation.linear", diffusers=f"{h}.norm.linear", comfy=f"{t}.modulation.lin",
        ),
        *linear(
            f"{group}.linear1", (d, d, d, mlp), d, group, count=n,
            tencent=f"{t}.linear1",
            diffusers=(f"{h}.attn.to_q", f"{h}.attn.to_k", f"{h}.attn.to_v", f"{h}.proj_mlp"),
            comfy=f"{t}.linear1",
        ),
        *linear(
            f"{group}.linear2", d, d + mlp, group, count=n,
            tencent=f"{t}.linear2", diffusers=f"{h}.proj_out", comfy=f"{t}.linear2",
        ),
        *(
            copied(
                f"{group}.{q}_norm.scale", (config.head_dim,), group, count=n,
                tencent=f"{t}.{q}_norm.weight",
                diffusers=f"{h}.attn.norm_{q}.weight",
                comfy=f"{t}.norm.{word}_norm.scale",
            )
            for q, word in (("q", "query"), ("k", "key"))
        ),
    )  # fmt: skip


def _embedder(
    leaf: str, columns: int, d: int, group: str, *, tencent: tuple[str, str], diffusers: str, comfy: str
) -> tuple[Entry, ...]:  # fmt: skip
    """A two-layer embedder: Linear, SiLU, Linear."""
    return (
        *linear(
            f"{leaf}.fc1", d, columns, group,
            tencent=tencent[0], diffusers=f"{diffusers}.linear_1", comfy=f"{comfy}.in_layer",
        ),
        *linear(
            f"{leaf}.fc2", d, d, group,
            tencent=tencent[1], diffusers=f"{diffusers}.linear_2", comfy=f"{comfy}.out_layer",
        ),
    )  # fmt: skip
