"""CLIP's text tower, which gives the pooled embedding; the projection and the vision tower are left out."""

from convert.keymaps.table import Entry, copied, linear, norm
from qsjax.text.config import ClipConfig

PREFIXES = {
    "transformers": (
        "",  # CLIPTextModel of transformers 5
        "text_model.",  # CLIPTextModel of earlier versions, CLIPModel, ComfyUI's clip_l
    )
}


def ignored(config: ClipConfig, prefix: str) -> tuple[str, ...]:
    """Patterns of keys that are not converted."""
    return (
        f"{prefix}embeddings.position_ids",
        "text_projection.weight",
        f"{prefix}text_projection.weight",
        "visual_projection.weight",
        "logit_scale",
        "vision_model.*",
    )


def table(config: ClipConfig) -> tuple[Entry, ...]:
    """The key table of the text tower."""
    d, n, mlp, layer = (
        config.hidden_size, config.num_hidden_layers, config.intermediate_size, "layers.{i}",
    )  # fmt: skip
    modules = {
        **{f"{q}_proj": (f"self_attn.{q}_proj", d, d) for q in ("q", "k", "v", "out")},
        "fc1": ("mlp.fc1", mlp, d),
        "fc2": ("mlp.fc2", d, mlp),
    }
    return (
        copied(
            "token_embed.embedding", (config.vocab_size, d), "ends",
            transformers="embeddings.token_embedding.weight",
        ),
        copied(
            "position_embed.embedding", (config.max_position_embeddings, d), "ends",
            transformers="embeddings.position_embedding.weight",
        ),
        *(
            entry
            for k in ("1", "2")
            for entry in norm(
                f"{layer}.norm{k}", d, layer, count=n,
                transformers=f"encoder.{layer}.layer_norm{k}",
            )
        ),
        *(
            entry
            for name, (theirs, rows, columns) in modules.items()
            for entry in linear(
                f"{layer}.{name}", rows, columns, layer, count=n,
                transformers=f"encoder.{layer}.{theirs}",
            )
        ),
        *norm("final_norm", d, "ends", transformers="final_layer_norm"),
    )  # fmt: skip
