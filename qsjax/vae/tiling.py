"""How a video too large for one pass is cut into overlapping tiles."""

from dataclasses import dataclass

from pallas_kernels import targets
from qsjax.errors import InputError
from qsjax.untrusted import check_bounds
from qsjax.untrusted.bounds import Length
from qsjax.vae.blending import Cut, TilePlan
from qsjax.vae.config import VAEConfig


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Tile sizes in frames and pixels; the defaults are those of Tencent's HunyuanVideo.

    Neighbouring tiles overlap by size minus stride, and are blended linearly there. A tile is decoded or
    encoded as if it were a whole video (GroupNorm and attention see only the tile), so different tile
    sizes give slightly different videos.

    Attributes:
        frames: frames of a tile, not counting the one extra frame that every tile begins with; None
            together with `frame_stride` means that time is not tiled.
        frame_stride: frames from one tile to the next.
        pixels: side of a tile along height and width; None together with `pixel_stride` means that
            space is not tiled.
        pixel_stride: pixels from one tile to the next.
        even: decode in tiles of one shape: as many as it takes, of equal length, at most the sizes above, with overlaps of
            size minus stride or a little more. A program is compiled for each shape, and for a TPU that takes minutes; with
            the others the tiles at the ends are what is left, as in Tencent's code. None is True on a TPU.
    """

    frames: Length | None = 64
    frame_stride: Length | None = 48
    pixels: Length | None = 256
    pixel_stride: Length | None = 192
    even: bool | None = None

    def __post_init__(self) -> None:
        check_bounds(self, source="tiling")
        for size_name, stride_name in (("frames", "frame_stride"), ("pixels", "pixel_stride")):
            size, stride = getattr(self, size_name), getattr(self, stride_name)
            if (size is None) != (stride is None):
                raise InputError(
                    f"tiling has {size_name}={size} but {stride_name}={stride}; give both, or neither to not tile"
                )
            if size is not None and not 0 < stride <= size:
                raise InputError(
                    f"tiling has {stride_name}={stride}; it must be between 1 and {size_name}={size}"
                )

    @classmethod
    def diffusers(cls) -> "Tiling":
        """The tile sizes of diffusers' `AutoencoderKLHunyuanVideo` after `enable_tiling()`."""
        return cls(frames=16, frame_stride=12)

    def decode_plan(self, config: VAEConfig) -> TilePlan:
        """The cuts of a latent.

        Raises:
            InputError: see `check`.
        """
        self.check(config)
        even = targets.current().backend == "tpu" if self.even is None else self.even
        cuts = [
            None
            if size is None or stride is None
            else Cut(size // ratio, stride // ratio, out_stride=stride, even=even)
            for size, stride, ratio in self._axes(config)
        ]
        return TilePlan(*cuts)

    def encode_plan(self, config: VAEConfig) -> TilePlan:
        """The cuts of a video.

        Raises:
            InputError: see `check`.
        """
        self.check(config)
        cuts = [
            None
            if size is None or stride is None
            else Cut(size, stride, out_stride=stride // ratio)
            for size, stride, ratio in self._axes(config)
        ]
        return TilePlan(*cuts)

    def _axes(self, config: VAEConfig) -> tuple[tuple[int | None, int | None, int], ...]:
        return (
            (self.frames, self.frame_stride, config.temporal_compression_ratio),
            (self.pixels, self.pixel_stride, config.spatial_compression_ratio),
        )

    def check(self, config: VAEConfig) -> None:
        """Refuse tiles that do not end on latent cells.

        Raises:
            InputError: a size or stride is not a multiple of the compression; names the nearest one that is.
        """
        for names, ratio in (
            (("frames", "frame_stride"), config.temporal_compression_ratio),
            (("pixels", "pixel_stride"), config.spatial_compression_ratio),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and value % ratio:
                    nearest = max(ratio, round(value / ratio) * ratio)
                    raise InputError(
                        f"tiling has {name}={value}, which the VAE's compression {ratio} does not divide;"
                        f" the nearest valid value is {nearest}"
                    )
