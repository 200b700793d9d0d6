"""LLaMA-3, the text encoder: only the layers whose output is used; everything else of LLaVA is left out."""

from convert.keymaps.table import Entry, copied, linear
from qsjax.text.config import LlamaConfig

LLAMA_CPP = "llama_cpp"
"""The layout of GGUF files, whose query and key rows are arranged otherwise (`convert.gguf_layout`)."""
PREFIXES = {
    "transformers": (
        "",  # LlamaModel of transformers 5
        "model.",  # LlamaForCausalLM, and LlamaModel of earlier versions
        "language_model.model.",  # LLaVA as it was published
        "model.language_model.",  # LLaVA of transformers 4.52 and later
    ),
    LLAMA_CPP: ("",),
}


def ignored(config: LlamaConfig, prefix: str) -> tuple[str, ...]:
    """Patterns of keys that are not converted: the encoder stops before the last layers, and never sees an image."""
    unused = range(config.num_used_layers, config.num_hidden_layers)
    return (
        *(f"{prefix}layers.{i}.*" for i in unused),
        *(f"blk.{i}.*" for i in unused),
        "output_norm.weight",
        "output.weight",
        f"{prefix}norm.weight",
        f"{prefix}rotary_emb.inv_freq",
        f"{prefix}layers.*.self_attn.rotary_emb.inv_freq",
        "lm_head.weight",
        "language_model.lm_head.weight",
        "vision_tower.*",
        "model.vision_tower.*",
        "multi_modal_projector.*",
        "model.multi_modal_projector.*",
    )


def table(config: LlamaConfig) -> tuple[Entry, ...]:
    """The key table of the layers in use."""
    d, n, layer = config.hidden_size, config.num_used_layers, "layers.{i}"
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    mlp = config.intermediate_size

    def projection(name: str, module: str, cpp: str, rows: int, columns: int) -> tuple[Entry, ...]:
        return linear(
            f"{layer}.{name}", rows, columns, layer, count=n, bias=False,
            transformers=f"{layer}.{module}.{name}", llama_cpp=f"blk.{{i}}.{cpp}",
        )  # fmt: skip

    return (
        copied(
            "embed.embedding", (config.vocab_size, d), "embed",
            transformers="embed_tokens.weight", llama_cpp="token_embd.weight",
        ),
        *(
            copied(
                f"{layer}.{ours}.scale", (d,), layer, count=n,
                transformers=f"{layer}.{theirs}.weight", llama_cpp=f"blk.{{i}}.{cpp}.weight",
            )
            for ours, theirs, cpp in (
                ("input_norm", "input_layernorm", "attn_norm"),
                ("post_attention_norm", "post_attention_layernorm", "ffn_norm"),
            )
        ),
        *projection("q_proj", "self_attn", "attn_q", queries, d),
        *projection("k_proj", "self_attn", "attn_k", keys, d),
        *projection("v_proj", "self_attn", "attn_v", keys, d),
        *projection("o_proj", "self_attn", "attn_output", d, queries),
        *projection("gate_proj", "mlp", "ffn_gate", mlp, d),
        *projection("up_proj", "mlp", "ffn_up", mlp, d),
        *projection("down_proj", "mlp", "ffn_down", d, mlp),
    )  # fmt: skip
