"""Configurations of strangers: a few hundred bytes take no memory, and no number in them is believed."""

import json
import math
import tracemalloc

import pytest

from qsjax.config import from_mapping
from qsjax.dit.config import DiTConfig
from qsjax.errors import InputError, QsjaxError
from qsjax.settings import Settings
from qsjax.text import PromptTemplate
from qsjax.text.config import ClipConfig, LlamaConfig
from qsjax.tiny.configs import CLIP_CONFIG, DIT_CONFIG, LLAMA_CONFIG, VAE_CONFIG
from qsjax.untrusted import parse_object
from qsjax.vae import Tiling
from qsjax.vae.config import VAEConfig

pytestmark = pytest.mark.hostile

NO_COUNT = (
    0,
    -1,
    -(2**63),
    10**9,
    2 * 10**9,
    2**62,
    1.5,
    "ab",
    "1",
    None,
    True,
    [],
    {},
    [2],
    {"a": 1},
)
NO_NUMBER = (0, -1.0, 1e-320, 1e300, "1", None, True, [], {})
SOUND = {
    "dit": DIT_CONFIG.to_diffusers(),
    "vae": VAE_CONFIG.to_diffusers(),
    "llama": LLAMA_CONFIG.to_transformers(),
    "clip": CLIP_CONFIG.to_transformers(),
}
READERS = {
    "dit": DiTConfig.from_diffusers,
    "vae": VAEConfig.from_diffusers,
    "llama": LlamaConfig.from_transformers,
    "clip": ClipConfig.from_transformers,
    "settings": lambda values: from_mapping(Settings, values, source="it"),
    "template": lambda values: from_mapping(PromptTemplate, values, source="it"),
    "tiling": lambda values: from_mapping(Tiling, values, source="it"),
}  # fmt: skip
COUNTS = {
    "dit": (
        "in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "num_layers", "num_single_layers",
        "num_refiner_layers", "patch_size", "patch_size_t", "text_embed_dim", "pooled_projection_dim",
    ),
    "vae": (
        "in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups",
        "spatial_compression_ratio", "temporal_compression_ratio",
    ),
    "llama": (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "max_position_embeddings",
    ),
    "clip": (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings",
    ),
    "settings": ("frames", "height", "width", "fps", "steps"),
    "template": ("max_length",),
}  # fmt: skip
NUMBERS = {
    "dit": ("mlp_ratio", "rope_theta"),
    "vae": ("scaling_factor",),
    "llama": ("rms_norm_eps",),
    "clip": ("layer_norm_eps",),
    "settings": ("shift",),
}
# An absent key has a default, and null stands for it; layers may be none.
SPARED = [
    *(("llama", name, value) for name in ("num_key_value_heads", "head_dim") for value in (0, None, [], {})),
    *(("dit", name, 0) for name in ("num_layers", "num_single_layers", "num_refiner_layers")),
]  # fmt: skip


CASES = [
    (kind, {name: value})
    for table, values in ((COUNTS, NO_COUNT), (NUMBERS, NO_NUMBER))
    for kind, names in table.items()
    for name in names
    for value in values
    if not any(
        (kind, name) == spared[:2] and type(value) is type(spared[2]) and value == spared[2]
        for spared in SPARED
    )
] + [
    ("dit", {"rope_axes_dim": [0, 32, 32]}),
    ("dit", {"rope_axes_dim": [-64, 64, 64]}),
    ("dit", {"rope_axes_dim": [16, 24]}),
    ("dit", {"rope_axes_dim": [16.0, 24, 24]}),
    ("dit", {"rope_axes_dim": "abc"}),
    ("dit", {"num_attention_heads": 10**9, "attention_head_dim": "ab"}),
    ("dit", {"num_attention_heads": "ab", "attention_head_dim": 10**9}),
    ("dit", {"num_attention_heads": [0], "attention_head_dim": 10**9}),
    ("dit", {"num_attention_heads": 1 << 16, "attention_head_dim": 1 << 16}),
    ("dit", {"mlp_ratio": 0.001}),
    ("dit", {"qk_norm": "x" * 10**6}),
    ("dit", {"image_condition_type": ["a"] * 10**5}),
    ("dit", {"guidance_embeds": 1}),
    ("vae", {"_class_name": []}),
    ("vae", {"_class_name": {}}),
    ("vae", {"_class_name": "\x1b[31m" * 1000}),
    ("vae", {"act_fn": "\x1b" * 10**6}),
    ("vae", {"act_fn": []}),
    ("vae", {"block_out_channels": [16] * 100_000}),
    ("vae", {"block_out_channels": [16, 24, 10**12]}),
    ("vae", {"block_out_channels": [16, 24, -8]}),
    ("vae", {"block_out_channels": [16, 24, "8"]}),
    ("vae", {"block_out_channels": {}}),
    ("vae", {"down_block_types": "x" * 10**6}),
    ("vae", {"down_block_types": 3}),
    ("vae", {"x" * 10**6: 3}),
    ("llama", {"rope_theta": 0, "rope_parameters": None}),
    ("llama", {"rope_theta": -1.0, "rope_parameters": None}),
    ("llama", {"rope_theta": 1e-320, "rope_parameters": None}),
    ("llama", {"rope_theta": "1", "rope_parameters": None}),
    ("llama", {"rope_parameters": {"rope_theta": 0}}),
    ("llama", {"rope_parameters": {"rope_theta": []}}),
    ("llama", {"rope_parameters": {"rope_type": []}}),
    ("llama", {"rope_parameters": {"rope_type": "x" * 10**6}}),
    ("llama", {"rope_parameters": [1]}),
    ("llama", {"rope_parameters": {"partial_rotary_factor": "x" * 10**6}}),
    ("llama", {"model_type": []}),
    ("llama", {"model_type": "x" * 10**6}),
    ("llama", {"hidden_act": "x" * 10**6}),
    ("llama", {"text_config": "x" * 10**6}),
    ("llama", {"text_config": []}),
    ("llama", {"num_key_value_heads": 3}),
    ("llama", {"num_hidden_layers": 2}),
    ("clip", {"eos_token_id": -5}),
    ("clip", {"eos_token_id": 10**9}),
    ("clip", {"eos_token_id": [2]}),
    ("clip", {"hidden_act": "x" * 10**6}),
    ("clip", {"hidden_act": []}),
    ("settings", {"true_cfg": 0.5}),
    ("settings", {"true_cfg": 1e300}),
    ("settings", {"guidance": -1}),
    ("settings", {"guidance": 1e300}),
    ("settings", {"negative_prompt": 3}),
    ("settings", {"sparse": {"interval": -1}}),
    ("template", {"crop_start": -1}),
    ("template", {"crop_start": 10**9}),
    ("template", {"template": "no place"}),
    ("template", {"template": "{}" * 10**6}),
    ("template", {"template": "x" * 10**6 + "{}"}),
    ("template", {"template": ["{}"]}),
    ("tiling", {"frames": 0, "frame_stride": 0}),
    ("tiling", {"frames": -4, "frame_stride": -8}),
    ("tiling", {"frames": 10**12, "frame_stride": 4}),
    ("tiling", {"pixels": 256, "pixel_stride": 257}),
    ("tiling", {"pixels": None}),
    ("tiling", {"pixels": "256"}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_value_that_cannot_be_is_refused(number: int) -> None:
    kind, change = CASES[number]
    base = SOUND.get(kind) or (
        {"template": "{}", "crop_start": 0, "max_length": 8} if kind == "template" else {}
    )
    with pytest.raises(InputError) as caught:
        READERS[kind](parse_object(json.dumps(base | change).encode(), "it"))
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 700


@pytest.mark.parametrize("kind", sorted(SOUND))
def test_a_sound_one_is_read(kind: str) -> None:
    assert READERS[kind](SOUND[kind])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
@pytest.mark.parametrize("kind", sorted(NUMBERS))
def test_numbers_that_no_json_file_can_hold(kind: str, value: float) -> None:
    """A caller of Python can."""
    for name in NUMBERS[kind]:
        with pytest.raises(InputError):
            READERS[kind](SOUND.get(kind, {}) | {name: value})


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"a": NaN}', "not finite"),
        ('{"a": 1e999}', "not finite"),
        ('{"a": ' + "9" * 400 + "}", "digits"),
        ('{"a": ' * 50_000 + "1" + "}" * 50_000, "not usable JSON"),
    ],
)
def test_text_that_is_no_configuration(text: str, what: str) -> None:
    with pytest.raises(QsjaxError, match=what):
        parse_object(text.encode(), "it")


@pytest.mark.parametrize("kind", ["dit", "vae", "llama", "clip"])
def test_what_a_product_would_take_is_not_taken(kind: str) -> None:
    """Every count at once as large as it may not be: nothing of that size is made."""
    tracemalloc.start()
    try:
        for value in (10**9, "ab", [0] * 100):
            with pytest.raises(InputError):
                READERS[kind](SOUND[kind] | dict.fromkeys(COUNTS[kind], value))
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
