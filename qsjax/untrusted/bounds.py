"""Bounds of a configuration's numbers, in its types: `num_heads: Annotated[int, Between(1, 1024)]`.

They are far above every model that exists, and low enough that a table of layers, a shape or a product of them costs nothing
to look at. What fits this machine is another question, which the plan answers.
"""

import math
import typing
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from qsjax.errors import InputError
from qsjax.untrusted.names import shown


@dataclass(frozen=True)
class Between:
    """A number that is at least `least` and at most `most`; not a NaN."""

    least: int | float
    most: int | float

    def __str__(self) -> str:
        return " to ".join(
            f"{x:,}" if isinstance(x, int) else f"{x:g}" for x in (self.least, self.most)
        )

    def __contains__(self, value: int | float) -> bool:
        return self.least <= value <= self.most


LONGEST = 4096
"""Values of a tuple."""
Layers = Annotated[int, Between(0, 1024)]
"""Layers or blocks of one kind."""
Width = Annotated[int, Between(1, 1 << 17)]
"""Channels, heads, or what else is a length of one axis of weights."""
Vocabulary = Annotated[int, Between(1, 1 << 22)]
"""Ids of a tokenizer."""
Length = Annotated[int, Between(1, 1 << 20)]
"""Tokens, frames or pixels along one axis."""
Positive = Annotated[float, Between(1e-30, 1e30)]
"""A number whose square float32 can hold, nearly."""
Epsilon = Annotated[float, Between(1e-20, 1)]
"""What a norm adds to a variance, in float32."""
RotaryBase = Annotated[float, Between(1, 1e12)]
"""Base of rotary frequencies; below 1 they would grow."""


def check_bounds(config: object, *, source: str = "") -> None:
    """Refuse a number of a dataclass that is not finite, or not inside the `Between` of its type; for a `__post_init__`.

    Numbers without one are finite, and integers below 2^63. A tuple's numbers are looked at one by one, of at most `LONGEST`.

    Args:
        config: a dataclass.
        source: what it describes, for the message.

    Raises:
        InputError: names the field, the value and the bounds.
    """
    begin = f"{source}: " if source else ""
    for name, bounds in _bounds(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, tuple) and len(value) > LONGEST:
            raise InputError(f"{begin}{name} has {len(value)} values; give at most {LONGEST}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{begin}{name} is {number}; give a finite number")
            if bounds is not None and number not in bounds:
                raise InputError(f"{begin}{name} is {shown(number)}; give a number from {bounds}")
            if not -(2**63) <= number < 2**63 and isinstance(number, int):
                raise InputError(f"{begin}{name} is {shown(number)}; give a smaller number")


@lru_cache(maxsize=256)
def _bounds(cls: type) -> dict[str, Between | None]:
    """Each field's bounds; those of a tuple are its elements'."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: _find(hints[name]) for name in cls.__dataclass_fields__ if name in hints}


def _find(hint: object) -> Between | None:
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, Between):
            return extra
    inner = [found for part in typing.get_args(hint) if (found := _find(part)) is not None]
    return inner[0] if inner else None
