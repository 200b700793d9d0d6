"""Numbers of a configuration are finite and inside what their type says."""

import math
from dataclasses import dataclass
from typing import Annotated

import pytest

from qsjax.config import from_mapping
from qsjax.errors import InputError
from qsjax.untrusted import Between, check_bounds


@dataclass(frozen=True)
class Sizes:
    heads: Annotated[int, Between(1, 1024)]
    axes: tuple[Annotated[int, Between(2, 64)], ...] = (2,)
    theta: float = 1.0
    count: int = 0
    share: Annotated[float, Between(0, 1)] | None = None
    on: bool = True

    def __post_init__(self) -> None:
        check_bounds(self, source="it")


def test_what_is_inside_is_taken() -> None:
    assert (
        from_mapping(Sizes, {"heads": 1024, "axes": [2, 64], "share": 0.5}, source="it").heads
        == 1024
    )


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"heads": 0}, "heads is 0; give a number from 1 to 1,024"),
        ({"heads": 10**400}, "heads is an integer of 1329 bits"),
        ({"axes": (4, 65)}, "axes is 65; give a number from 2 to 64"),
        ({"theta": math.nan}, "theta is nan; give a finite number"),
        ({"theta": math.inf}, "theta is inf; give a finite number"),
        ({"count": 2**63}, "give a smaller number"),
        ({"share": 1.5}, "share is 1.5"),
    ],
)
def test_what_is_not_is_refused(values: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=r"^it: ") as caught:
        Sizes(**({"heads": 1} | values))
    assert reason in str(caught.value)
