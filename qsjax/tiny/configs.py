"""Sizes of the tiny model: its vocabularies, text encoders, transformer and autoencoder, and how it is best sampled."""

from qsjax.dit import DiTConfig
from qsjax.settings import Settings
from qsjax.text import ClipConfig, LlamaConfig
from qsjax.tiny.scenes import VOCABULARY
from qsjax.vae import VAEConfig

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<begin>", "<end>"
LLAMA_TOKENS = (PAD, UNKNOWN, BEGIN, *VOCABULARY)
# End-of-text has the highest id: CLIP pools there by that rule, or by the configured id; both must agree.
CLIP_TOKENS = (PAD, UNKNOWN, BEGIN, *VOCABULARY, END)

# Two layers are used: the states are read two layers before the end, as in HunyuanVideo.
LLAMA_CONFIG = LlamaConfig(
    vocab_size=len(LLAMA_TOKENS),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    max_position_embeddings=512,
)
CLIP_CONFIG = ClipConfig(
    vocab_size=len(CLIP_TOKENS),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    eos_token_id=len(CLIP_TOKENS) - 1,
)

DIT_CONFIG = DiTConfig(
    in_channels=16,
    out_channels=16,
    hidden_size=128,
    num_heads=2,
    num_double_blocks=3,
    num_single_blocks=6,
    num_refiner_blocks=2,
    mlp_ratio=4.0,
    patch_size=(1, 2, 2),
    rope_axes_dim=(16, 24, 24),
    rope_theta=256.0,
    text_dim=64,
    pooled_dim=64,
    guidance_embeds=True,
)
VAE_CONFIG = VAEConfig(
    block_out_channels=(16, 24, 32),
    norm_num_groups=8,
    layers_per_block=1,
    spatial_compression_ratio=4,
    scaling_factor=1.0,  # the latent space has unit variance by construction
)

DEFAULTS = Settings(
    frames=33, height=64, width=64, fps=16, steps=30, shift=3.0, guidance=4.0, true_cfg=1.0
)
"""How this version of the tiny model is best sampled."""
