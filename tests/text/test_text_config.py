import dataclasses
import re

import pytest
import transformers
from text_oracles import CLIP, LLAMA

from qsjax.config import from_mapping, to_mapping
from qsjax.errors import InputError
from qsjax.text import ClipConfig, LlamaConfig

# Keys as in the published configurations; what they leave out has transformers' default.
LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "image_token_index": 128257,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 128320,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": None,
        "torch_dtype": "float16",
    },
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024},
}
CLIP_L = {
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": {
        "model_type": "clip_text_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "eos_token_id": 2,
        "dropout": 0.0,
    },
    "vision_config": {"hidden_size": 1024},
}


def _llama(**changes):
    return LLAMA.to_transformers() | changes


def _clip(**changes):
    return CLIP.to_transformers() | changes


def test_published_configurations_are_read():
    assert LlamaConfig.from_transformers(LLAVA) == LlamaConfig(
        vocab_size=128320,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        max_position_embeddings=8192,
    )
    assert LlamaConfig.from_transformers(LLAVA).num_used_layers == 30
    assert ClipConfig.from_transformers(CLIP_L) == ClipConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        eos_token_id=2,
    )


def test_absent_keys_have_the_defaults_of_transformers():
    llama = LlamaConfig.from_transformers({"model_type": "llama"})
    assert llama == LlamaConfig.from_transformers(transformers.LlamaConfig().to_dict())
    clip = ClipConfig.from_transformers({"model_type": "clip_text_model"})
    assert clip == ClipConfig.from_transformers(transformers.CLIPTextConfig().to_dict())


def test_configurations_survive_transformers_and_the_manifest():
    for ours, theirs in ((LLAMA, transformers.LlamaConfig), (CLIP, transformers.CLIPTextConfig)):
        saved = theirs(**ours.to_transformers()).to_dict()
        assert type(ours).from_transformers(saved) == ours
        assert type(ours).from_transformers(ours.to_transformers()) == ours
        assert from_mapping(type(ours), to_mapping(ours), source="manifest") == ours


def test_rope_theta_is_found_in_either_place():
    old = {k: v for k, v in _llama(rope_theta=7e4).items() if k != "rope_parameters"}
    assert LlamaConfig.from_transformers(old).rope_theta == 7e4
    new = {k: v for k, v in _llama().items() if k != "rope_theta"}
    assert LlamaConfig.from_transformers(new).rope_theta == 5e5


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (_llama(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5}), "rotary scaling of type 'llama3'"),
        (_llama(rope_scaling={"type": "linear", "factor": 2.0}), "rotary scaling of type 'linear'"),
        (_llama(rope_parameters={"partial_rotary_factor": 0.5}), "partial_rotary_factor = 0.5"),
        (_llama(rope_scaling=3), "rotary parameters should be a JSON object"),
        (_llama(attention_bias=True), "attention_bias = True is not supported, only False"),
        (_llama(mlp_bias=True), "mlp_bias = True"),
        (_llama(hidden_act="gelu"), "hidden_act = 'gelu'"),
        (_llama(model_type="mistral"), "model_type is 'mistral', expected llama"),
        (LLAVA | {"text_config": {"model_type": "mistral"}}, "model_type is 'mistral'"),
        (LLAVA | {"text_config": 3}, "text_config should be a JSON object"),
        (LLAVA | {"quantization_config": {"bits": 4}}, "the weights are quantized"),
        (_llama(num_hidden_layers=2), "give a model of at least 3 layers"),
        (_llama(num_key_value_heads=4), "6 heads cannot share 4 key-value heads"),
        (_llama(head_dim=7), "head_dim = 7"),
        (_llama(head_dim=None, hidden_size=43), "hidden_size = 43 does not divide"),
        (_llama(vocab_size="many"), "vocab_size: expected int, found 'many'"),
        (_llama(hidden_size=0), "hidden_size is 0; give a number from 1 to 131,072"),
        ({"hidden_size": 32}, "has no model_type"),
    ],
)  # fmt: skip
def test_llamas_of_another_arithmetic_are_refused(mapping, message):
    with pytest.raises(InputError, match=re.escape(message)):
        LlamaConfig.from_transformers(mapping)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (_clip(hidden_act="relu"), "hidden_act = 'relu' is not supported"),
        (_clip(num_attention_heads=5), "does not divide into 5 heads"),
        (_clip(model_type="siglip_text_model"), "expected clip_text_model"),
        (_clip(layer_norm_eps=-1.0), "layer_norm_eps is -1.0; give a number from 1e-20 to 1"),
    ],
)
def test_clips_of_another_arithmetic_are_refused(mapping, message):
    with pytest.raises(InputError, match=re.escape(message)):
        ClipConfig.from_transformers(mapping)


def test_every_size_must_be_given():
    values = to_mapping(CLIP)
    del values["eos_token_id"]
    with pytest.raises(InputError, match="missing eos_token_id"):
        from_mapping(ClipConfig, values, source="manifest")
    assert dataclasses.replace(CLIP, eos_token_id=0).eos_token_id == 0
