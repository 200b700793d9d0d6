"""The experiments on quantization, as data: methods by bit widths and rounding, the ablation of MSAD, outliers, modulation layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from qsjax.calibration import METHODS, Method
from qsjax.experiments.row import Outliers, Row, nameless
from qsjax.quant import Precision, Recipe
from qsjax.quant.quantizer import UNQUANTIZED
from qsjax.settings.calibration import SAMPLED_EARLY

SEEDS = (0, 1, 2)
"""Of calibrations, where rows have several."""
PRESETS = ("w4a8", "w6a6", "w4a4", "w3a8")
"""QuantSparse reports W4A8 and W6A6; the others are where methods come apart. Whole recipes, modulation and refiner included."""
COMPARED = ("rtn", "smoothquant", "quarot", "vidit", "qvdit", "ptq", "msad")
ABLATED = {
    "global": "global",
    "local": "local",
    "both": "msad",
    "both, random rows": "random-rows",
    "local, all rows": "full-attention",
}
"""Attention terms by the methods that have them."""
TUNE_STEPS = METHODS["tuned"].tune_steps
ALIKE = {"tuned, all steps alike": replace(METHODS["tuned"], tune_early=0.0)}
"""The default but for the first steps, which it tunes by more than their share."""


class Rank(IntEnum):
    """What is measured first: a run of hours may be stopped."""

    MAIN = 0
    METHODS = 1
    ABLATION = 2
    SEEDS = 3
    BITS = 4
    REST = 5


@dataclass(frozen=True, kw_only=True)
class QuantizationRow(Row):
    """One experiment.

    Attributes:
        recipe: bits.
        method: how transforms and clips are found.
        outliers: of the model; large models have some.
        seed: of the calibration: its captions, noise, moments and their order.
        rank: rows of a lower one are measured first.
    """

    recipe: Recipe
    method: Method
    outliers: Outliers = "none"
    seed: int = 0
    rank: Rank = Rank.REST

    @property
    def name(self) -> str:
        """Group, label and seed."""
        return f"{super().name}, seed {self.seed}"

    @property
    def fixed(self) -> bool:
        """Whether no sample changes the model, as rounding to nearest or a fixed rotation: one seed is all."""
        uses = (self.method.learns, self.method.smoothing, self.method.tune_steps > 0)
        return not any(uses) and self.method.rounding == "nearest"

    def content(self) -> dict[str, object]:
        """Everything but rank and the names of recipe and method."""
        content: dict[str, object] = {"outliers": self.outliers, "seed": self.seed}
        if not self.fixed:
            content["sampled early"] = SAMPLED_EARLY
        for part, config in (("recipe", self.recipe), ("method", self.method)):
            content[part] = nameless(config)
        return content


def quantization_grid() -> tuple[QuantizationRow, ...]:
    """All experiments, a table after another; the first row of a table is what its others are paired with."""
    return (
        *_methods("w4a8", rest=Rank.METHODS, seeds=("ptq", "ptq + gptq", "msad", "msad + gptq")),
        *_ablation(),
        *_methods("w6a6", rest=Rank.BITS, nearest=("rtn",)),
        *_methods("w4a4", rest=Rank.METHODS),
        *_methods("w3a8", rest=Rank.BITS, nearest=("rtn",), promised=False),
        *_outliers("channels"),
        *_outliers("spikes"),
        *_modulation(),
    )


def variant(name: str, *, gptq: bool = False, tuned: bool = False) -> tuple[str, Method]:
    """A method with its rounding and tuning, and the label that says so."""
    label = [name, *(["gptq"] if gptq and name != "gptq" else []), *(["tuning"] if tuned else [])]
    rounding = "gptq" if gptq or name == "gptq" else "nearest"
    method = replace(METHODS[name], rounding=rounding, tune_steps=0)
    if tuned:
        early = METHODS["tuned"].tune_early
        method = replace(method, tune_steps=TUNE_STEPS, tune_early=early)
    return " + ".join(label), method


def _methods(
    preset: str,
    *,
    rest: Rank,
    nearest: Sequence[str] = COMPARED,
    seeds: Sequence[str] = (),
    promised: bool = True,
) -> list[QuantizationRow]:
    """The methods with both roundings, the training-free one, and the tuned ones.

    Args:
        preset: of the recipe.
        rest: rank of the methods that are compared.
        nearest: methods whose weights are rounded to nearest, too.
        seeds: further labels of rows that have several seeds.
        promised: whether the two rows that matter most come first, and with several seeds.
    """
    most = {name: METHODS[name] for name in ("gptq", "tuned")}
    methods = {
        **dict(variant(name) for name in nearest),
        **dict(variant(name, gptq=True) for name in COMPARED),
        **most,
    }
    ranks = dict.fromkeys(methods, rest)
    repeated = dict.fromkeys(seeds, Rank.SEEDS)
    if promised:
        ranks |= dict.fromkeys(("rtn", *most), Rank.MAIN)
        repeated |= dict.fromkeys(most, Rank.MAIN)
    if preset in ("w4a8", "w6a6"):
        methods, ranks = methods | ALIKE, ranks | dict.fromkeys(ALIKE, Rank.SEEDS)
        repeated |= dict.fromkeys(ALIKE, Rank.SEEDS)
    if preset == "w4a8":
        more = dict([variant("gptq", tuned=True), variant("msad", gptq=True, tuned=True)])
        methods, ranks = methods | more, ranks | dict.fromkeys(more, Rank.SEEDS)
    return _with_seeds(_table(preset.upper(), Recipe.load(preset), methods, ranks), repeated)


def _ablation() -> list[QuantizationRow]:
    """W4A8 by MSAD without its attention terms, with one of them, and with other rows; all on the same inputs, rounded with error
    feedback."""
    _, none = variant("ptq", gptq=True)
    methods = {"none": replace(none, inputs=METHODS["msad"].inputs)}
    for label, name in ABLATED.items():
        _, methods[label] = variant(name, gptq=True)
    ranks = dict.fromkeys(methods, Rank.ABLATION)
    rows = _table("ablation, W4A8 + gptq", Recipe.load("w4a8"), methods, ranks)
    return _with_seeds(rows, ranks)


def _outliers(kind: Outliers) -> list[QuantizationRow]:
    """W4A8 of the model with outliers."""
    methods = dict(
        [
            *(variant(name) for name in ("rtn", "smoothquant", "quarot", "gptq")),
            *(variant(name, gptq=True) for name in ("ptq", "msad")),
            ("tuned", METHODS["tuned"]),
        ]
    )
    recipe, ranks = Recipe.load("w4a8"), dict.fromkeys(methods, Rank.REST)
    return _table(f"W4A8 with outliers, {kind}", recipe, methods, ranks, outliers=kind)


def _modulation() -> list[QuantizationRow]:
    """The modulation layers alone, a quarter of the weights but read once a prompt; and the text refiner's."""
    whole = Precision(weights=UNQUANTIZED)
    recipe = Recipe(name="", blocks=whole, modulation=whole, refiner=whole)
    forms = {
        "modulation, 8 bits": replace(recipe, modulation=Precision(weights=8)),
        "modulation, 4 bits, groups of 64": replace(
            recipe, modulation=Precision(weights=4, group=64)
        ),
        "modulation, 4 bits": replace(recipe, modulation=Precision(weights=4)),
        "refiner, 8 bits": replace(recipe, refiner=Precision(weights=8)),
    }
    method = METHODS["rtn"]
    return [
        QuantizationRow(group="one part alone", label=label, recipe=form, method=method)
        for label, form in forms.items()
    ]


def _table(
    group: str,
    recipe: Recipe,
    methods: Mapping[str, Method],
    ranks: Mapping[str, Rank],
    *,
    outliers: Outliers = "none",
) -> list[QuantizationRow]:
    """A row a method, by label."""
    return [
        QuantizationRow(
            group=group,
            label=label,
            recipe=recipe,
            method=method,
            outliers=outliers,
            rank=ranks[label],
        )
        for label, method in methods.items()
    ]


def _with_seeds(
    rows: Iterable[QuantizationRow], ranks: Mapping[str, Rank]
) -> list[QuantizationRow]:
    """The rows, those of these labels with all seeds, one after the other."""
    repeated = []
    for row in rows:
        repeated.append(row)
        if row.label in ranks:
            later = [replace(row, seed=seed, rank=ranks[row.label]) for seed in SEEDS[1:]]
            repeated += later
    return repeated
