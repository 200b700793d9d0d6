"""Options that the experiments run by `python -m` share."""

import argparse

from qsjax.calibration import SettingsChanges
from qsjax.experiments.clips import EVALUATED
from qsjax.settings.calibration import SAMPLES

SIZE = {"frames": 33, "height": 64, "width": 64}
"""Of the bundled model's videos."""


def add_size(parser: argparse.ArgumentParser, *, steps: int = 30) -> None:
    """Video size and number of steps, with these defaults."""
    for name, default in (SIZE | {"steps": steps}).items():
        parser.add_argument(f"--{name}", type=int, default=default)


def size_of(args: argparse.Namespace) -> SettingsChanges:
    """What `add_size` added, for a pipeline's call."""
    return SettingsChanges(
        frames=args.frames, height=args.height, width=args.width, steps=args.steps
    )


def add_clips(parser: argparse.ArgumentParser, *, captions: int) -> None:
    """Captions of a stream, and the calibration's samples and seed."""
    parser.add_argument("--stream", choices=EVALUATED, default="choice")
    parser.add_argument("--captions", type=int, default=captions)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--seed", type=int, default=0)
