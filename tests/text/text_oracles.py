"""Small random PyTorch text encoders, and their weights in our modules."""

import numpy as np
import torch
import transformers
from flax import nnx

from convert.keymaps import load_module
from qsjax.text import Clip, ClipConfig, Llama, LlamaConfig

LLAMA = LlamaConfig(
    vocab_size=48,
    hidden_size=42,
    intermediate_size=56,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    max_position_embeddings=512,
)
CLIP = ClipConfig(
    vocab_size=32,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=3,
    max_position_embeddings=16,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    eos_token_id=31,
)


def torch_llama(config: LlamaConfig = LLAMA, seed: int = 0) -> transformers.LlamaModel:
    return _randomize(
        transformers.LlamaModel(transformers.LlamaConfig(**config.to_transformers())), seed
    )


def torch_clip(config: ClipConfig = CLIP, seed: int = 0) -> transformers.CLIPTextModel:
    return _randomize(
        transformers.CLIPTextModel(transformers.CLIPTextConfig(**config.to_transformers())), seed
    )


def our_llama(model: transformers.LlamaModel, config: LlamaConfig = LLAMA, **options) -> Llama:
    module = nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0), **options))
    return load_module(module, "llama", "transformers", _arrays(model), config)


def our_clip(model: transformers.CLIPTextModel, config: ClipConfig = CLIP, **options) -> Clip:
    module = nnx.eval_shape(lambda: Clip(config, rngs=nnx.Rngs(0), **options))
    return load_module(module, "clip", "transformers", _arrays(model), config)


def relative_error(ours, reference) -> float:
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def _randomize(model, seed):
    """Weights of order one per layer, and norms that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim == 1 or "embed" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise * 1.5 / parameter.shape[1] ** 0.5)
    return model.eval()


def _arrays(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}
