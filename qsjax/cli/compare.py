"""`qsjax sample --compare MODEL`: the same prompt and noise in full precision, side by side."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsjax.cli.options import Options
from qsjax.errors import InputError
from qsjax.settings import Settings

if TYPE_CHECKING:
    from qsjax.pipeline import Pipeline
    from qsjax.text import EncodedPrompt

_SHARED = ("frames", "height", "width", "steps", "shift", "guidance", "true_cfg")


def add_compare(options: Options) -> None:
    """Add `--compare MODEL`."""
    options.add_argument(
        "--compare",
        metavar="MODEL",
        help="sample a checkpoint in full precision too, or 'tiny', with dense attention; writes OUT.compare.mp4 (side by side)"
        " and OUT.compare.png (frames, difference, PSNR over time)",
    )


def check_compare(args: argparse.Namespace) -> None:
    """Refuse options that do not go with `--compare`.

    Raises:
        InputError: names the option.
    """
    if args.compare is not None and args.coordinator is not None:
        raise InputError("--compare runs on one host; leave it or --coordinator out")
    if args.compare is not None and args.save_prompt is not None:
        raise InputError("--save-prompt stops before there is a video; leave it or --compare out")


@dataclass(frozen=True)
class ReferenceRun:
    """What a video is compared with.

    Attributes:
        name: of the checkpoint, as it was typed.
        pipeline: it, opened and not loaded.
        label: of the video that is compared.
        video, strip: files to write.
        overwrite: they may be there.
    """

    name: str
    pipeline: "Pipeline"
    label: str
    video: Path
    strip: Path
    overwrite: bool

    @classmethod
    def asked(
        cls,
        args: argparse.Namespace,
        pipeline: "Pipeline",
        settings: Settings,
        open_model: "Callable[[str], Pipeline]",
    ) -> "ReferenceRun | None":
        """The run that the options ask for, checked before anything is sampled; None if they ask for none.

        Raises:
            InputError: a checkpoint that is quantized, of another size, or that makes the same video; files that are there.
        """
        if args.compare is None:
            return None
        from qsjax.video import check_writable

        reference = open_model(args.compare)
        if reference.weights is not None:
            raise InputError(
                f"--compare {args.compare}: is quantized ({reference.weights}); name a checkpoint in full precision"
            )
        changed = settings.sparse is not None or settings.skip is not None
        if not changed and reference.content_digest == pipeline.content_digest:
            raise InputError(
                f"--compare {args.compare}: makes the same video, since --model is in full precision with dense attention; add"
                " --recipe, or name a quantized --model"
            )
        shapes = [each.latent_shape(settings) for each in (pipeline, reference)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"--compare {args.compare}: its latents are {list(shapes[1])} and those of --model {list(shapes[0])}; name the"
                " checkpoint that --model was made of"
            )
        recipe = "" if args.recipe is None else Path(args.recipe).stem
        parts = [pipeline.weights or "full precision", recipe or ("sparse" if changed else "")]
        files = [args.out.with_name(f"{args.out.stem}.compare.{kind}") for kind in ("mp4", "png")]
        for file in files:
            check_writable(file, overwrite=args.overwrite)
        label = ", ".join(part for part in parts if part)
        return cls(args.compare, reference, label, *files, overwrite=args.overwrite)

    def compare(
        self, prompt: "str | EncodedPrompt", video: np.ndarray, settings: Settings, *, seed: int
    ) -> dict[str, Any]:
        """Sample the reference and write both files; returns figures and files for the report.

        Args:
            prompt: of the video.
            video: uint8 [F, Y, X, 3].
            settings: of the run that made it.
            seed: of its noise.

        Raises:
            QsjaxError: the reference cannot be sampled, or a file cannot be written.
        """
        from qsjax.evaluate.side_by_side import SideBySide

        negative = settings.negative_prompt if settings.plan().uses_negative else None
        result = self.pipeline.generate(
            prompt,
            negative_prompt=negative,
            seed=seed,
            sparse=False,
            skip=False,
            **{name: getattr(settings, name) for name in _SHARED},
        )
        frames = result.frames[0] if result.frames.ndim == 5 else result.frames
        pair = SideBySide.of(frames, video, ("full precision", self.label))
        comment = f"left: full precision, right: {self.label}; seed {seed}"
        pair.write_video(self.video, fps=settings.fps, comment=comment, overwrite=self.overwrite)
        pair.write_strip(self.strip, overwrite=self.overwrite)
        return {"with": self.name, **pair.plain(), "files": [str(self.video), str(self.strip)]}
