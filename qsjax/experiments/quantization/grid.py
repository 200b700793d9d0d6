"""The experiments on quantization, as data: methods by bit widths, modulation layers, and methods without one of their parts."""

from dataclasses import dataclass, replace

from qsjax.calibration import METHODS, Method
from qsjax.config import to_mapping
from qsjax.experiments.row import Row
from qsjax.quant import Precision, Recipe
from qsjax.quant.quantizer import UNQUANTIZED

BITS = ((4, 8), (6, 6), (4, 4), (3, 8))
"""Weights and activations. QuantSparse reports W4A8 and W6A6; the others are where methods come apart."""
COMPARED = ("rtn", "smoothquant", "quarot", "vidit", "qvdit", "ptq", "msad")
ABLATED = ("global", "local", "random-rows", "full-attention")


@dataclass(frozen=True, kw_only=True)
class QuantizationRow(Row):
    """One experiment.

    Attributes:
        recipe: bits.
        method: how transforms and clips are found.
        outliers: whether the model has outlier channels (`qsjax.tiny.outliers`), as large models have.
    """

    recipe: Recipe
    method: Method
    outliers: bool = False

    def content(self) -> dict[str, object]:
        """Everything but the names of recipe and method."""
        content: dict[str, object] = {"outliers": self.outliers}
        for part, config in (("recipe", self.recipe), ("method", self.method)):
            content[part] = {k: v for k, v in to_mapping(config).items() if k != "name"}
        return content


def quantization_grid() -> tuple[QuantizationRow, ...]:
    """All experiments, with and without outliers except for modulation; the first row of a table is what its others are paired with."""
    rows = []
    for weights, activations in BITS:
        recipe = _recipe(weights, activations)
        for outliers in (False, True):
            group = _group(recipe.name, outliers)
            rows += [_row(group, METHODS[name], recipe, outliers) for name in COMPARED]
    return (*rows, *_modulation(), *_ablation(False), *_ablation(True))


def _modulation() -> list[QuantizationRow]:
    """The modulation layers, alone and with W4A8 blocks: a quarter of the weights, but read once a prompt."""
    forms = {
        "16 bits": Precision(weights=UNQUANTIZED),
        "8 bits": Precision(weights=8),
        "4 bits, groups of 64": Precision(weights=4, group=64),
        "4 bits": Precision(weights=4),
    }
    rows = []
    for label, form in forms.items():
        alone = replace(_recipe(UNQUANTIZED, UNQUANTIZED), modulation=form)
        if form.quantized:
            rows.append(_row("modulation alone", METHODS["rtn"], alone, label=label))
    refiner = replace(_recipe(UNQUANTIZED, UNQUANTIZED), refiner=Precision(weights=8))
    rows.append(_row("modulation alone", METHODS["rtn"], refiner, label="refiner, 8 bits"))
    method = replace(METHODS["msad"], inputs="fp")
    for label, form in forms.items():
        beside = replace(_recipe(4, 8), modulation=form, refiner=Precision(weights=8))
        rows.append(_row("modulation beside W4A8", method, beside, label=label))
    return rows


def _ablation(outliers: bool) -> list[QuantizationRow]:
    """W4A8 by MSAD; with other inputs during training; on float inputs, without one part of MSAD, or with only one part of the
    learned transforms."""
    ptq, msad = METHODS["ptq"], METHODS["msad"]
    light = replace(msad, global_weight=0.1, local_weight=0.1)
    nothing = replace(ptq, learn_smoothing=False, learn_rotation=False, learn_clips=False)
    methods = [
        msad,
        replace(light, name="weights of 0.1"),
        replace(ptq, name="ptq, mixed inputs", inputs="mixed"),
        replace(msad, name="quantized inputs", inputs="quantized"),
        replace(msad, name="float inputs", inputs="fp"),
        replace(light, name="float inputs, weights of 0.1", inputs="fp"),
        ptq,
        *(replace(METHODS[part], name=f"float inputs, {part}", inputs="fp") for part in ABLATED),
        replace(nothing, name="nothing learned"),
        replace(nothing, name="clips only", learn_clips=True),
        replace(nothing, name="smoothing only", learn_smoothing=True),
        replace(nothing, name="rotation only", learn_rotation=True),
    ]
    group = _group("ablation", outliers)
    return [_row(group, method, _recipe(4, 8), outliers) for method in methods]


def _row(
    group: str, method: Method, recipe: Recipe, outliers: bool = False, label: str = ""
) -> QuantizationRow:
    return QuantizationRow(
        group=group, label=label or method.name, recipe=recipe, method=method, outliers=outliers
    )


def _group(name: str, outliers: bool) -> str:
    return f"{name} with outliers" if outliers else name


def _recipe(weights: int, activations: int) -> Recipe:
    """Only the blocks' layers are quantized; all others are the same for every method."""
    whole = Precision(weights=UNQUANTIZED)
    return Recipe(
        name=f"W{weights}A{activations}",
        blocks=Precision(weights=weights, activations=activations),
        modulation=whole,
        refiner=whole,
    )
