"""How the cache corrects a sparse step: QuantSparse's residual orders, and the exact merge with a stale complement.

O_S is the attention over the listed keys now; D = O - O_S at the last refresh; D2 = D - D' its change since the refresh before. O_R
and lse_R are attention and log-sum-exp over the keys that are not listed, at the last refresh. A prime is the refresh before. The
first five are from QuantSparse, section 3.3, or extend it; the last three are qsjax's own:

    none                 O_S
    first                O_S + D
    second               O_S + D + D2
    second-scaled        O_S + D + g D2
    third                O_S + D + D2 + (D2 - D2')
    recall               a O_S + (1 - a) O_R,                   a = sigmoid(lse_S - lse_R)
    recall-extrapolated  the same with O_R + g (O_R - O_R'), lse_R + g (lse_R - lse_R')
    recall-following     a O_S + (1 - a) (X + g (X - X') + O_S / 2), X = O_R - O_S / 2 at the last refresh, a as before

g is the distance of the step from the last refresh, in units of the distance between the last two refreshes.

First order assumes that attention over the unlisted keys changes as O_S does; recall assumes that it stays the same. Both have about
the same error; following half the change of O_S has a smaller error than either (docs/sparse_attention.md).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from qsjax.config import check_choices
from qsjax.errors import InputError
from qsjax.untrusted import Between, check_bounds

PolicyName = Literal[
    "none", "first", "second", "second-scaled", "third", "recall", "recall-extrapolated", "recall-following"
]  # fmt: skip
Store = Literal["float32", "bfloat16", "int8", "int4"]
Clock = Literal["steps", "sigma"]
Place = Literal["device", "host"]


@dataclass(frozen=True)
class Policy:
    """A correction, as data.

    Attributes:
        form: what is cached: nothing, D ("additive") or O_R ("complement").
        order: 1 uses the cached value, 2 adds its change, 3 adds the second difference (the change of the change).
        scaled: whether changes are multiplied by g.
        follow: share of the change of O_S by which a complement is assumed to change.
    """

    form: Literal["none", "additive", "complement"]
    order: int = 1
    scaled: bool = False
    follow: float = 0.0


POLICIES: dict[PolicyName, Policy] = {
    "none": Policy("none", 0),
    "first": Policy("additive"),
    "second": Policy("additive", 2),
    "second-scaled": Policy("additive", 2, scaled=True),
    "third": Policy("additive", 3),
    "recall": Policy("complement"),
    "recall-extrapolated": Policy("complement", 2, scaled=True),
    "recall-following": Policy("complement", 2, scaled=True, follow=0.5),
}


@dataclass(frozen=True, kw_only=True)
class Residual:
    """What is kept between refreshes.

    Attributes:
        policy: how a sparse step is corrected.
        store: dtype of the cached tensor.
        rank: rank that approximates the changes from refresh to refresh (QuantSparse uses 16); 0 keeps them whole, in the same store.
        clock: unit of extrapolation: steps, or sigma, the noise level.
        budget: bytes for the cache of all layers: takes the most exact store that fits, in place of `store`; 0 is no budget.
        place: memory of the cached tensors; from the host, a layer's are fetched while the layer before runs (not on GPUs).
    """

    policy: PolicyName = "recall-following"
    store: Store = "bfloat16"
    rank: Annotated[int, Between(0, 4096)] = 16
    clock: Clock = "steps"
    budget: int = 0
    place: Place = "device"

    def __post_init__(self) -> None:
        check_choices(self)
        if min(self.rank, self.budget) < 0:
            raise InputError(
                f"rank={self.rank}, budget={self.budget}: must not be negative; rank 0 keeps all of a change, budget 0 sets none"
            )
        check_bounds(self)

    @property
    def rule(self) -> Policy:
        """The policy as data."""
        return POLICIES[self.policy]

    @property
    def words(self) -> bool:
        """Whether integers are kept as words; see `qsjax.residual.store.store`."""
        return self.place == "host"
