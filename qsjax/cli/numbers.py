"""Numbers typed as options: finite, and inside bounds that the option names."""

import argparse
import math
from collections.abc import Callable

from qsjax.untrusted import Between, shown

_DIGITS = 24


def whole(least: int = -(2**63), most: int = 2**64 - 1) -> Callable[[str], int]:
    """Reads an integer of an option, for argparse's `type`."""

    def read(text: str) -> int:
        try:
            number = int(text) if len(text) <= _DIGITS else None
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(_wrong(text, "a whole number", least, most))
        return number

    return read


def real(least: float = -1e38, most: float = 1e38) -> Callable[[str], float]:
    """Reads a finite number of an option, for argparse's `type`."""

    def read(text: str) -> float:
        try:
            number = float(text) if len(text) <= 4 * _DIGITS else math.nan
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(_wrong(text, "a number", least, most))
        return number

    return read


def _wrong(text: str, kind: str, least: int | float, most: int | float) -> str:
    return f"{shown(text, 40)}: give {kind} from {Between(least, most)}"
