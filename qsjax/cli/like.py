"""`--like VIDEO`: options that were not typed are those by which a video was made."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qsjax.provenance import Provenance

logger = logging.getLogger(__name__)

_SAME = ("seed", "dtype", "text_storage")


def take_over(args: argparse.Namespace, made: "Provenance", settings: Sequence[str]) -> None:
    """Set the options that were not typed; the sampling recipe is left to the caller.

    Args:
        args: the parsed arguments; they are modified.
        made: what the video says of its making.
        settings: names of the options that are fields of its settings.
    """
    if args.encoded_prompt is None and not args.prompt:
        args.prompt = made.prompt
    values = {name: getattr(made, name) for name in _SAME}
    values |= {name: getattr(made.settings, name) for name in settings}
    values |= {
        f"kernels.{key}": name for key, name in asdict(made.kernels).items() if name != "auto"
    }
    for name, value in values.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.negative_prompt is None and args.true_cfg > 1:
        args.negative_prompt = made.settings.negative_prompt


def say_differences(made: "Provenance", here: "Provenance") -> list[str]:
    """Warn of what may make the video another one; returns the clauses."""
    found = made.differences(here)
    if found:
        logger.warning("the video may differ: it was made with %s", "; ".join(found))
    return found
