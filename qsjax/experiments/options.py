"""Options that the experiments run by `python -m` share."""

import argparse

from qsjax.calibration import SettingsChanges

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
