"""What `qsjax bench step` estimates: a model, a plan, a size of video and a TPU, and the programs to compile for them."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pallas_kernels.block_sparse_attention import bench as attention_bench
from pallas_kernels.block_sparse_attention.case import AttentionCase
from pallas_kernels.block_sparse_attention.tiles import DENSE_BLOCKS
from pallas_kernels.targets import Target
from qsjax.bench.step_program import StepRequest
from qsjax.budget.devices import Device
from qsjax.budget.models import PlannedModel
from qsjax.budget.overheads import BFLOAT16
from qsjax.budget.size import Size
from qsjax.budget.steps import lists_on
from qsjax.quant import Recipe
from qsjax.quant.recipe import FLOAT
from qsjax.sample import SamplingPlan
from qsjax.settings import DENSE


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is compiled.

    Attributes:
        model: the model with its quantization recipe.
        plan: the sampling plan.
        target: a TPU.
        size: of the video.
    """

    model: PlannedModel
    plan: SamplingPlan
    target: Target
    size: Size

    @property
    def latents(self) -> tuple[int, int, int]:
        """Frames, height and width of the latents."""
        return self.model.vae.latent_shape(self.size.frames, self.size.height, self.size.width)

    @property
    def device(self) -> Device:
        """One chip; its memory is of no consequence here."""
        return Device(name="chip", target=self.target.name, memory_bytes=1)

    @property
    def kinds(self) -> dict[str, int]:
        """Kinds of the steps -> how many there are."""
        return {kind: self.plan.kinds.count(kind) for kind in dict.fromkeys(self.plan.kinds)}

    @property
    def lists(self) -> tuple[float, int]:
        """Executed density of a sparse step, and bytes of the lists and the cache of all layers."""
        return lists_on(self.target, self.model.dit, self.plan, self.latents, self.size.text_tokens)

    @cached_property
    def full_lists(self) -> AttentionCase:
        """Dense attention by our own kernel."""
        case = next(c for c in attention_bench.CASES["tpu"] if c.listed is None and c.band is None)
        config = self.model.dit
        block_q, block_kv = DENSE_BLOCKS
        return replace(
            case,
            tokens=self.size.tokens,
            heads=config.num_heads,
            head_dim=config.head_dim,
            text=0,
            block_q=block_q,
            block_kv=block_kv,
        )

    def request(self, kind: str, **changes: Any) -> StepRequest:
        """A step of this size; of the kind `BFLOAT16`, the one to compare with."""
        recipe, plan = self.model.recipe, self.plan
        if kind == BFLOAT16:
            recipe, plan, kind = Recipe.load(FLOAT), self.plan.dense, DENSE
        values: dict[str, Any] = {
            "config": self.model.dit,
            "recipe": recipe,
            "plan": plan,
            "kind": kind,
            "target": self.target.name,
            "latents": self.latents,
            "text_tokens": self.size.text_tokens,
            "clipped": self.model.clipped,
        }
        return StepRequest(**{**values, **changes})
