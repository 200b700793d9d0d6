"""The sizes of a HunyuanVideo diffusion transformer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from qsjax.config import from_mapping, preset
from qsjax.errors import InputError
from qsjax.untrusted import Between, check_bounds, shown
from qsjax.untrusted.bounds import Layers, RotaryBase, Width

# Settings of diffusers' config.json that are fixed here, each with the only value that this model computes.
_FIXED = {"qk_norm": "rms_norm", "image_condition_type": None}
_SOURCE = "transformer config"


_Cells = Annotated[int, Between(1, 64)]


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Architecture of the transformer; no field has a default, presets live in configs/models.

    Attributes:
        in_channels: latent channels of the input, 16.
        out_channels: latent channels of the predicted velocity, 16.
        hidden_size: width, D.
        num_heads: attention heads, H; the head size is `hidden_size // num_heads`.
        num_double_blocks: blocks with separate weights for video and text.
        num_single_blocks: blocks with shared weights.
        num_refiner_blocks: blocks of the text token refiner.
        mlp_ratio: hidden width of the block MLPs over `hidden_size` (the refiner's is always 4).
        patch_size: latent cells in a token along (time, height, width).
        rope_axes_dim: head channels rotated by position along (time, height, width); their sum is the head size.
        rope_theta: base of the rotary frequencies.
        text_dim: width of the text encoder's states.
        pooled_dim: width of the pooled text embedding.
        guidance_embeds: whether the guidance scale is an input (guidance-distilled models).
    """

    in_channels: Width
    out_channels: Width
    hidden_size: Width
    num_heads: Width
    num_double_blocks: Layers
    num_single_blocks: Layers
    num_refiner_blocks: Layers
    mlp_ratio: Annotated[float, Between(1 / 64, 64)]
    patch_size: tuple[_Cells, _Cells, _Cells]
    rope_axes_dim: tuple[Width, Width, Width]
    rope_theta: RotaryBase
    text_dim: Width
    pooled_dim: Width
    guidance_embeds: bool

    def __post_init__(self) -> None:
        check_bounds(self, source=_SOURCE)
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}"
            )
        if sum(self.rope_axes_dim) != self.head_dim or any(dim % 2 for dim in self.rope_axes_dim):
            raise InputError(
                f"rope_axes_dim {self.rope_axes_dim} must be even and sum to the head size {self.head_dim}"
            )
        if self.mlp_size < 1:
            raise InputError(
                f"mlp_ratio {self.mlp_ratio} leaves no channel of hidden_size {self.hidden_size}; give a larger one"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        """Hidden width of the block MLPs."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def num_blocks(self) -> int:
        """Double and single blocks together: the layers of an attention state."""
        return self.num_double_blocks + self.num_single_blocks

    @classmethod
    def preset(cls, name: str) -> "DiTConfig":
        """The sizes named in `configs/models/<name>.toml`."""
        return from_mapping(cls, preset("models", name)["dit"], source=f"model preset {name}")

    @classmethod
    def from_diffusers(cls, values: Mapping[str, Any]) -> "DiTConfig":
        """Read the config.json of a diffusers `HunyuanVideoTransformer3DModel`.

        Raises:
            InputError: the file describes a variant that this model does not compute (image to video).
        """
        for key, expected in _FIXED.items():
            if values.get(key, expected) != expected:
                raise InputError(
                    f"transformer config has {key}={shown(values[key])}; only {expected!r} (text to video) is supported"
                )
        try:
            heads, head_dim = (
                _count(values, key) for key in ("num_attention_heads", "attention_head_dim")
            )
            ours = {
                "in_channels": values["in_channels"],
                "out_channels": values["out_channels"],
                "hidden_size": heads * head_dim,
                "num_heads": heads,
                "num_double_blocks": values["num_layers"],
                "num_single_blocks": values["num_single_layers"],
                "num_refiner_blocks": values["num_refiner_layers"],
                "mlp_ratio": values["mlp_ratio"],
                "patch_size": (values["patch_size_t"], values["patch_size"], values["patch_size"]),
                "rope_axes_dim": values["rope_axes_dim"],
                "rope_theta": values["rope_theta"],
                "text_dim": values["text_embed_dim"],
                "pooled_dim": values["pooled_projection_dim"],
                "guidance_embeds": values["guidance_embeds"],
            }
        except KeyError as error:
            raise InputError(
                f"transformer config lacks {error.args[0]!r}; give the config.json of HunyuanVideoTransformer3DModel"
            ) from error
        return from_mapping(cls, ours, source=_SOURCE)

    def to_diffusers(self) -> dict[str, Any]:
        """The config.json that diffusers' `HunyuanVideoTransformer3DModel` loads.

        Raises:
            InputError: the patch is not square, which diffusers cannot express.
        """
        if self.patch_size[1] != self.patch_size[2]:
            raise InputError(f"diffusers has square patches only, not {self.patch_size}")
        return {
            "_class_name": "HunyuanVideoTransformer3DModel",
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "num_attention_heads": self.num_heads,
            "attention_head_dim": self.head_dim,
            "num_layers": self.num_double_blocks,
            "num_single_layers": self.num_single_blocks,
            "num_refiner_layers": self.num_refiner_blocks,
            "mlp_ratio": self.mlp_ratio,
            "patch_size": self.patch_size[1],
            "patch_size_t": self.patch_size[0],
            "qk_norm": "rms_norm",
            "guidance_embeds": self.guidance_embeds,
            "text_embed_dim": self.text_dim,
            "pooled_projection_dim": self.pooled_dim,
            "rope_theta": self.rope_theta,
            "rope_axes_dim": list(self.rope_axes_dim),
            "image_condition_type": None,
        }


def _count(values: Mapping[str, Any], key: str) -> int:
    """A number that is to be multiplied: of a string it would be repetition, and of a huge one a huge product."""
    value = values[key]
    if type(value) is not int or not 0 < value < 1 << 17:
        raise InputError(
            f"{_SOURCE} has {key}={shown(value)}; give a positive number of heads or channels"
        )
    return value
