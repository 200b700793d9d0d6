"""The sizes of HunyuanVideo's causal video VAE."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from qsjax.config import from_mapping
from qsjax.errors import InputError
from qsjax.untrusted import Between, check_bounds, shown
from qsjax.untrusted.bounds import Width

_CLASS = "AutoencoderKLHunyuanVideo"
_SAME = (
    "in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block",
    "norm_num_groups", "scaling_factor", "spatial_compression_ratio", "temporal_compression_ratio",
    "mid_block_add_attention",
)  # fmt: skip
_BLOCK_TYPES = {
    "AutoencoderKLHunyuanVideo": {
        "down_block_types": "HunyuanVideoDownBlock3D",
        "up_block_types": "HunyuanVideoUpBlock3D",
    },
    "AutoencoderKLCausal3D": {
        "down_block_types": "DownEncoderBlockCausal3D",
        "up_block_types": "UpDecoderBlockCausal3D",
    },
}
_MOST_LEVELS = 12
# Keys of Tencent's config.json that do not describe the architecture: tile sizes, and a switch of its own code.
_TENCENT_ONLY = ("sample_size", "sample_tsize", "force_upcast")


class Level(NamedTuple):
    """One resolution level: whether its end resamples space and time by two."""

    spatial: bool
    temporal: bool

    @property
    def factor(self) -> tuple[int, int, int]:
        """Resampling along (time, height, width)."""
        space = 2 if self.spatial else 1
        return (2 if self.temporal else 1, space, space)

    @property
    def resamples(self) -> bool:
        """Whether the level ends with a resampling convolution."""
        return self.spatial or self.temporal


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Architecture of the autoencoder; the defaults are those of HunyuanVideo 13B.

    Attributes:
        in_channels: colours of the encoded video, 3.
        out_channels: colours of the decoded video, 3.
        latent_channels: channels of the latent, C.
        block_out_channels: widths of the levels from the finest to the coarsest.
        layers_per_block: resnets of an encoder level; a decoder level has one more.
        norm_num_groups: groups of every GroupNorm.
        scaling_factor: the diffusion transformer sees latents multiplied by this number.
        spatial_compression_ratio: pixels per latent cell along height and width, a power of two.
        temporal_compression_ratio: frames per latent frame after the first, 4.
        mid_block_add_attention: whether the coarsest level has frame-causal attention.
    """

    in_channels: Width = 3
    out_channels: Width = 3
    latent_channels: Width = 16
    block_out_channels: tuple[Width, ...] = (128, 256, 512, 512)
    layers_per_block: Annotated[int, Between(1, 64)] = 2
    norm_num_groups: Width = 32
    scaling_factor: Annotated[float, Between(1e-6, 1e6)] = 0.476986
    spatial_compression_ratio: int = 8
    temporal_compression_ratio: int = 4
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        check_bounds(self, source="VAE config")
        widths, ratio = self.block_out_channels, self.spatial_compression_ratio
        if self.temporal_compression_ratio != 4:
            raise InputError(
                f"VAE config has temporal_compression_ratio={self.temporal_compression_ratio}; only 4 is supported"
            )
        if not 3 <= len(widths) <= _MOST_LEVELS:
            raise InputError(
                f"VAE config has {len(widths)} levels in block_out_channels; at least 3 levels are needed to compress time by 4,"
                f" and at most {_MOST_LEVELS} are read"
            )
        allowed = [2**power for power in range(len(widths) + 1)]
        if ratio not in allowed:
            raise InputError(
                f"VAE config has spatial_compression_ratio={ratio}; {len(widths)} levels allow {allowed}"
            )
        if uneven := [width for width in widths if width % self.norm_num_groups]:
            raise InputError(
                f"VAE config has widths {uneven} in block_out_channels that norm_num_groups={self.norm_num_groups} does not divide"
            )

    def levels(self) -> tuple[Level, ...]:
        """What level i does at its end; the same rule for encoder and decoder, each counted from its input."""
        last = len(self.block_out_channels) - 1
        halvings = self.spatial_compression_ratio.bit_length() - 1
        return tuple(
            Level(spatial=i < halvings, temporal=last - 2 <= i < last) for i in range(last + 1)
        )

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent (frames, height, width) of a video of 4k+1 frames; sizes in pixels."""
        ratio = self.spatial_compression_ratio
        latent_frames = (frames - 1) // self.temporal_compression_ratio + 1
        return latent_frames, height // ratio, width // ratio

    def video_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Video (frames, height, width) that a latent of these sizes decodes to."""
        ratio = self.spatial_compression_ratio
        return (frames - 1) * self.temporal_compression_ratio + 1, height * ratio, width * ratio

    @classmethod
    def from_diffusers(cls, values: Mapping[str, Any]) -> "VAEConfig":
        """Read the config.json of diffusers' `AutoencoderKLHunyuanVideo` or of Tencent's `AutoencoderKLCausal3D`.

        Absent keys have the values of HunyuanVideo 13B.

        Raises:
            InputError: an unknown key, a value of the wrong type, or an architecture that is not computed here.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"VAE config is {shown(values)}; give the table of a config.json")
        kind = values.get("_class_name", _CLASS)
        if not isinstance(kind, str) or kind not in _BLOCK_TYPES:
            raise InputError(
                f"VAE config describes {shown(kind)}; supported are {', '.join(_BLOCK_TYPES)}"
            )
        ours = {key: value for key, value in values.items() if not key.startswith("_")}
        if kind != _CLASS:
            ours = {key: value for key, value in ours.items() if key not in _TENCENT_ONLY}
            if "time_compression_ratio" in ours:
                ours["temporal_compression_ratio"] = ours.pop("time_compression_ratio")
            if ours.pop("mid_block_causal_attn", True) is not True:
                raise InputError(
                    "VAE config turns mid_block_causal_attn off; only true is supported"
                )
        if (act := ours.pop("act_fn", "silu")) not in ("silu", "swish"):
            raise InputError(f"VAE config has act_fn={shown(act)}; only 'silu' is supported")
        listed = {
            key: (ours.pop(key), _BLOCK_TYPES[kind][key])
            for key in _BLOCK_TYPES[kind]
            if key in ours
        }
        config = from_mapping(cls, ours, source="VAE config")
        for key, (types, known) in listed.items():
            expected = [known] * len(config.block_out_channels)
            if not isinstance(types, (list, tuple)) or list(types) != expected:
                raise InputError(
                    f"VAE config has {key}={shown(types)}; expected {len(expected)} times {known!r},"
                    f" one for each of block_out_channels"
                )
        return config

    def to_diffusers(self) -> dict[str, Any]:
        """The config.json that diffusers' `AutoencoderKLHunyuanVideo` loads."""
        levels = len(self.block_out_channels)
        return {
            "_class_name": _CLASS,
            **{name: getattr(self, name) for name in _SAME},
            "block_out_channels": list(self.block_out_channels),
            "act_fn": "silu",
            **{key: [kind] * levels for key, kind in _BLOCK_TYPES[_CLASS].items()},
        }
