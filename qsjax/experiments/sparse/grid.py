"""The experiments on sparse attention, as data: policies by density, mask, weights and schedule; sweeps; baselines."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from qsjax.calibration import METHODS, Method
from qsjax.experiments.row import Outliers, Row, nameless
from qsjax.residual import Residual
from qsjax.sample import Skip, SparsePlan
from qsjax.settings import PolicyName
from qsjax.settings.calibration import SAMPLED_EARLY
from qsjax.sparse import Sparsity

DENSITIES = (0.15, 0.25, 0.40)
SHIFTS = (3.0, 7.0)
MASKS = {"svg": Sparsity(mask="svg"), "topk": Sparsity(mask="topk", tile=(1, 4, 4))}
"""Lists that are the same in every step, and lists that follow the tokens."""
COMPARED: tuple[PolicyName, ...] = (
    "first",
    "none",
    "second-scaled",
    "recall-extrapolated",
    "recall-following",
)
"""Policies in every table of them."""
ALL = (*COMPARED[:2], "second", "second-scaled", "third", "recall", *COMPARED[3:])
"""Those at the lowest density and the default shift."""
SCHEDULES = ((1, 5), (2, 6), (3, 8), (4, 9), (5, 13))
"""Dense steps and interval: six full passes in thirty steps, all at the beginning or all over the run."""
PLACED: dict[float, dict[str, dict[str, Any]]] = {
    3.0: {
        "3 dense, every 5th": {"dense_steps": 3},
        "at 0, 2, 5, 10, 18": {"refresh_at": (0.07, 0.17, 0.33, 0.6)},
    },
    7.0: {
        "5 dense, every 5th": {"dense_steps": 5},
        "at 0, 2, 5, 10, 16, 23, 31, 38, 44": {
            "refresh_at": (0.04, 0.1, 0.2, 0.32, 0.46, 0.62, 0.76, 0.88)
        },
    },
}
"""Placements of the full passes by shift: as the recipes have them, eight in thirty steps and fourteen in fifty (`--steps 50`), and
tables of five and nine."""
WEIGHTS = {
    "nearest": replace(METHODS["tuned"], rounding="nearest", tune_steps=0),
    "tuned": METHODS["tuned"],
    "tuned, all steps alike": replace(METHODS["tuned"], tune_early=0.0),
}
"""Of W4A8: the same training of blocks with each integer the nearest and no tuning, the default of `qsjax calibrate`, and the
default but for the first steps, which it tunes by more than their share."""
SEEDS = (0, 1, 2)
"""Of calibrations, where rows have several."""
FEW = (4, 6, 8)
"""Steps of models that are distilled to few."""
FEW_SHIFTS = (17.0, 7.0)
"""FastHunyuan's, and HunyuanVideo's own."""
SKIPPED = (0.05, 0.1, 0.2)
"""Thresholds of step skipping."""
FLOATS = Residual(store="float32", rank=16)
SWEPT = replace(FLOATS, policy="recall-extrapolated")
"""What the sweep and step skipping go on from."""


@dataclass(frozen=True, kw_only=True)
class SparseRow(Row):
    """One experiment.

    Attributes:
        method: how the W4A8 weights are made; None is full precision.
        outliers: of the model.
        seed: of the calibration, counted from the run's.
        shift: of the schedule.
        steps: None is the experiment's.
        sparse: None is dense attention.
        skip: None leaves out no step.
    """

    method: Method | None = None
    outliers: Outliers = "none"
    seed: int = 0
    shift: float = 3.0
    steps: int | None = None
    sparse: SparsePlan | None = None
    skip: Skip | None = None

    @property
    def name(self) -> str:
        """Group and label, and the seed where there is a calibration."""
        return super().name if self.method is None else f"{super().name}, seed {self.seed}"

    @property
    def reference_name(self) -> str:
        """The full-precision run at its shift, with as many steps."""
        steps = "" if self.steps is None else f"-{self.steps}"
        return f"reference-{self.shift:g}{steps}"

    def content(self) -> dict[str, object]:
        """Everything but group, label and the method's name."""
        parts = {"method": self.method, "sparse": self.sparse, "skip": self.skip}
        return {
            "outliers": self.outliers,
            "seed": self.seed,
            "shift": self.shift,
            **({} if self.steps is None else {"steps": self.steps}),
            **({} if self.method is None else {"sampled early": SAMPLED_EARLY}),
            **{name: None if part is None else nameless(part) for name, part in parts.items()},
        }


def sparse_grid() -> tuple[SparseRow, ...]:
    """All experiments; the first row of a table is what its others are paired with."""
    rows: list[SparseRow] = []
    for shift, density, (mask, sparsity) in product(SHIFTS, DENSITIES, MASKS.items()):
        group = f"float, {mask}, {100 * density:.0f} %, shift {shift:g}"
        for policy in ALL if (density, shift) == (DENSITIES[0], SHIFTS[0]) else COMPARED:
            plan = _plan(replace(sparsity, density=density), replace(FLOATS, policy=policy))
            rows.append(SparseRow(group=group, label=policy, shift=shift, sparse=plan))
    return (
        *rows,
        *_quantized(),
        *_sweeps(),
        *_schedules(),
        *_placements(),
        *_few_steps(),
        *_baselines(),
        *_skipping(),
        *_interaction(),
    )


def _plan(sparsity: Sparsity, residual: Residual) -> SparsePlan:
    """One dense step first, a refresh in every fifth; without a cache nothing is refreshed."""
    interval = 0 if residual.policy == "none" else 5
    return SparsePlan(sparsity=sparsity, residual=residual, interval=interval, dense_steps=1)


def _quantized() -> list[SparseRow]:
    """W4A8 and sparse attention, rounded to nearest and tuned, beside full precision; at the lowest density and the default shift
    with several seeds and other policies."""
    rows = []
    for shift, density, (mask, sparsity) in product(SHIFTS, DENSITIES, MASKS.items()):
        if shift != SHIFTS[0] and (mask, density) != ("svg", DENSITIES[0]):
            continue
        group = f"W4A8, {mask}, {100 * density:.0f} %, shift {shift:g}"
        most = (mask, density, shift) == ("svg", DENSITIES[0], SHIFTS[0])
        following = _plan(replace(sparsity, density=density), FLOATS)
        plans = {f"{count} dense": replace(following, dense_steps=count) for count in (1, 3)}
        compared = list(WEIGHTS) if most else list(WEIGHTS)[:2]
        cases = [(weights, label) for label in plans for weights in compared]
        if most:
            for policy in ("first", "none"):
                plans[policy] = _plan(following.sparsity, replace(FLOATS, policy=policy))
                cases.append(("tuned", policy))
        for seed in SEEDS if most else SEEDS[:1]:
            rows += [
                SparseRow(
                    group=group,
                    label=f"{weights}, {label}",
                    method=WEIGHTS[weights],
                    seed=seed,
                    shift=shift,
                    sparse=plans[label],
                )
                for weights, label in cases
                if seed == 0 or label.endswith("dense")
            ]
        rows += [
            SparseRow(
                group=group, label=f"full precision, {label}", shift=shift, sparse=plans[label]
            )
            for label in plans
            if label.endswith("dense")
        ]
    return rows


def _sweeps() -> list[SparseRow]:
    """One setting at a time, about `SWEPT` at 15 % in float32; lists that are kept or not."""
    svg, topk = (replace(mask, density=0.15) for mask in MASKS.values())
    changes: dict[str, Any] = {
        **{f"interval {n}": {"interval": n} for n in (5, 3, 4, 6, 8)},
        **{f"rank {n}": {"residual": replace(SWEPT, rank=n)} for n in (4, 8)},
        "not factorized": {"residual": replace(SWEPT, rank=0)},
        **{s: {"residual": replace(SWEPT, store=s)} for s in ("bfloat16", "int8", "int4")},
        "in noise levels": {"residual": replace(SWEPT, clock="sigma")},
        "windows": {"sparsity": replace(svg, mask="svg-window")},
        "int8 scores": {"scores": "int8"},
    }
    group = "sweep, float, svg, 15 %, shift 3"
    rows = [
        SparseRow(group=group, label=label, sparse=replace(_plan(svg, SWEPT), **change))
        for label, change in changes.items()
    ]
    for policy in ("first", "recall"):
        residual, group = replace(FLOATS, policy=policy), "lists, float, topk, 15 %, shift 3"
        for label, fresh in (("kept between refreshes", False), ("chosen in every step", True)):
            plan = _plan(replace(topk, every_step=fresh), residual)
            rows.append(SparseRow(group=group, label=f"{policy}, {label}", sparse=plan))
    return rows


def _schedules() -> list[SparseRow]:
    """Where the full passes are in a run: more of them at its start, by mask and policy; as many, at its start or spread."""
    warm = [(f"{count} dense", count, 5) for count in (1, 3, 5)]
    equal = [(f"{n} dense, interval {i}", n, i) for n, i in SCHEDULES]
    Table = tuple[str, str, tuple[PolicyName, ...], list[tuple[str, int, int]]]
    tables: list[Table] = [("warm-up", mask, ("first", *COMPARED[3:]), warm) for mask in MASKS]
    tables.append(("equal cost", "svg", ("first", "recall-following"), equal))
    rows = []
    for title, mask, policies, schedules in tables:
        group, sparsity = f"{title}, float, {mask}, 15 %, shift 3", MASKS[mask]
        for policy, (label, count, interval) in product(policies, schedules):
            plan = _plan(replace(sparsity, density=0.15), replace(FLOATS, policy=policy))
            scheduled = replace(plan, dense_steps=count, interval=interval)
            rows.append(SparseRow(group=group, label=f"{policy}, {label}", sparse=scheduled))
    return rows


def _placements() -> list[SparseRow]:
    """Fewer full passes, better placed; with the recipes' cache, 8-bit integers."""
    plan = _plan(replace(MASKS["svg"], density=0.15), Residual(store="int8"))
    return [
        SparseRow(
            group=f"placement, float, svg, 15 %, shift {shift:g}",
            label=label,
            shift=shift,
            sparse=replace(plan, **changes),
        )
        for shift, placements in PLACED.items()
        for label, changes in placements.items()
    ]


def _few_steps() -> list[SparseRow]:
    """Which of few steps may be sparse, against dense attention in as many; with the recipes' cache, and without one."""
    rows = []
    for shift, steps, density in product(FEW_SHIFTS, FEW, (0.15, 0.25)):
        plan = _plan(replace(MASKS["svg"], density=density), Residual(store="int8"))
        group = f"few steps, float, svg, {100 * density:.0f} %, {steps} steps, shift {shift:g}"
        middle, last = steps // 2, steps - 1
        two = ((0, second) for second in (middle, 1, last - 1, last))
        thirds = (0, steps // 3, 2 * steps // 3)
        for full in dict.fromkeys(((0,), *two, thirds)):
            places = tuple(step / steps for step in full[1:])
            label = f"full at {', '.join(map(str, full))}"
            placed = replace(plan, interval=0, refresh_at=places)
            row = SparseRow(group=group, label=label, shift=shift, steps=steps, sparse=placed)
            rows.append(row)
            if full == (0, middle):
                bare = replace(placed, residual=Residual(policy="none"))
                rows.append(replace(row, label=f"{label}, no cache", sparse=bare))
    return rows


def _baselines() -> list[SparseRow]:
    """Other methods, at 15 % in float32: SVG alone, windows with a first-order cache as DiTFastAttn, top-k alone as Jenga, sliding
    tiles, radial; and dense attention in every fifth step and no cache, the control."""
    none, first = (replace(FLOATS, policy=policy) for policy in ("none", "first"))
    masks = {
        "SVG": MASKS["svg"],
        "top-k (Jenga)": MASKS["topk"],
        "top-p, 90 % of the mass": Sparsity(mask="topp", tile=(1, 4, 4)),
        "sliding tiles": Sparsity(mask="sta", tile=(3, 4, 4)),
        "radial": Sparsity(mask="radial"),
        "band": Sparsity(mask="band"),
    }
    group = "baselines, float, 15 %, shift 3"
    plans = {
        "ours": _plan(replace(MASKS["svg"], density=0.15), FLOATS),
        **{
            f"{label} alone": _plan(replace(mask, density=0.15), none)
            for label, mask in masks.items()
        },
        "SVG, every fifth step dense": replace(
            _plan(replace(MASKS["svg"], density=0.15), none), interval=5
        ),
        "window, first order (DiTFastAttn)": _plan(Sparsity(mask="window", density=0.15), first),
        **{
            f"{label}, our cache": _plan(replace(mask, density=0.15), FLOATS)
            for label, mask in list(masks.items())[2:]
        },
    }
    return [SparseRow(group=group, label=label, sparse=plan) for label, plan in plans.items()]


def _skipping() -> list[SparseRow]:
    """Steps left out (TeaCache), alone and with sparse attention and its cache, whose refreshes are always computed."""
    group = "step skipping, float, shift 3"
    sparse = _plan(replace(MASKS["svg"], density=0.15), SWEPT)
    rows = [SparseRow(group=group, label="sparse, none left out", sparse=sparse)]
    for threshold in SKIPPED:
        skip, label = Skip(threshold=threshold), f"up to {threshold:g}"
        rows.append(SparseRow(group=group, label=f"dense, {label}", skip=skip))
        rows.append(SparseRow(group=group, label=f"sparse, {label}", sparse=sparse, skip=skip))
    return rows


def _interaction() -> list[SparseRow]:
    """Errors of quantization, of sparsity and of both, with and without outlier channels."""
    rows = []
    plan = _plan(replace(MASKS["svg"], density=0.15), FLOATS)
    models: dict[str, Outliers] = {"": "none", " with outliers": "channels"}
    for title, outliers in models.items():
        row = SparseRow(group=f"together{title}, svg, 15 %, shift 3", label="", outliers=outliers)
        tuned = WEIGHTS["tuned"]
        rows += [
            replace(row, label="W4A8", method=tuned),
            replace(row, label="sparse", sparse=plan),
            replace(row, label="both", method=tuned, sparse=plan),
        ]
    return rows
