"""Options of the verbs that keep a model resident and make videos on request: `qsjax ui` and `qsjax serve`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsjax.cli.kernels import add_kernels, given_kernels
from qsjax.cli.numbers import whole
from qsjax.cli.options import Options, add_config, add_no_verify, add_precision

if TYPE_CHECKING:
    from qsjax.pipeline import Pipeline
    from qsjax.serving import VideoMaker

GOODBYE = 10.0
"""Seconds at the end for what runs to see that it is cancelled; its file is whole or not there in any case."""


def add_resident(options: Options, *, port: int) -> None:
    """Add the options that both have.

    Args:
        options: of the verb.
        port: where it listens by default.
    """
    options.add_argument(
        "--model", default="tiny", help="checkpoint folder, or 'tiny' for the bundled model"
    )
    options.add_argument(
        "--out", type=Path, default=Path("videos"), help="folder of all videos; finished ones stay"
    )
    options.add_argument(
        "--port",
        type=whole(0, 65_535),
        default=port,
        help="where it listens; 0 takes a free one",
    )
    options.add_argument(
        "--max-steps", type=whole(1, 10_000), help="steps of a video at most (default: 200)"
    )
    options.add_argument(
        "--max-pixels",
        type=whole(1),
        help="frames x height x width of a video at most (default: twice the checkpoint's own)",
    )
    add_precision(options)
    options.add_argument(
        "--devices",
        type=whole(1, 65_536),
        default=1,
        help="number of devices that share the transformer's tokens and heads",
    )
    options.add_argument(
        "--shard-weights", action="store_true", help="shard the transformer's weights over the devices too"
    )  # fmt: skip
    add_no_verify(options)
    add_kernels(options)
    options.add_argument(
        "--json", action="store_true", help="print address and folder as JSON on stdout"
    )
    add_config(options)


def open_resident(args: argparse.Namespace, model: str) -> "Pipeline":
    """Open a checkpoint; its models stay loaded where the memory holds all of them."""
    from qsjax.pipeline import Pipeline

    storage: dict[str, Any] = {
        "dtype": args.dtype,
        "text_storage": args.text_storage,
        "devices": args.devices,
        "shard_weights": args.shard_weights,
        "kernels": given_kernels(args),
        "progress": False,
        "verify": not args.no_verify,
    }
    if model == "tiny":
        return Pipeline.tiny(**storage)
    return Pipeline.from_checkpoint(model, **storage)


def make_maker(args: argparse.Namespace, *, reference: str | None, preview: int) -> "VideoMaker":
    """What makes the videos.

    Args:
        args: the parsed arguments.
        reference: checkpoint in full precision to compare with; None takes the model itself if it is one.
        preview: steps from preview to preview; 0 is none.

    Raises:
        InputError: a reference that is quantized, or a folder that cannot be made.
        CheckpointError: no checkpoint.
    """
    from qsjax.serving import Limits, VideoFolder, VideoMaker

    pipeline = open_resident(args, args.model)
    if reference is not None and reference != args.model:
        other = open_resident(args, reference)
    else:
        other = pipeline if reference is not None or pipeline.weights is None else None
    limits = Limits.of(pipeline.settings, pixels=args.max_pixels, steps=args.max_steps)
    return VideoMaker(pipeline, VideoFolder(args.out), limits, reference=other, preview=preview)
