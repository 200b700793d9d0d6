"""`python -m qsjax.experiments.interaction`: attention's error by quantization, sparsity and both, on the bundled model."""

import argparse
import json

import numpy as np

from qsjax.calibration import calibrate_module, collect
from qsjax.calibration.methods import method
from qsjax.calibration.variables import effective_recipe
from qsjax.experiments.clips import calibration_captions
from qsjax.experiments.interaction.basis import to_float_channels
from qsjax.experiments.interaction.measure import attention_errors
from qsjax.experiments.interaction.table import table
from qsjax.experiments.options import add_size, size_of
from qsjax.pipeline import Pipeline
from qsjax.quant import Recipe
from qsjax.settings.calibration import SAMPLES
from qsjax.settings.sparsity import Sparsity
from qsjax.tiny.streams import HELD_OUT, held_out


def main() -> None:
    """Calibrate the bundled model, measure, print the table, or the means of every clip as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_size(parser, steps=10)
    parser.add_argument("--captions", type=int, default=8)
    parser.add_argument("--first-caption", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--recipe", default="w4a8")
    parser.add_argument("--methods", nargs="+", default=["rtn", "gptq"])
    parser.add_argument("--mask", default="svg")
    parser.add_argument("--density", type=float, default=0.15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    stream = held_out(HELD_OUT, args.first_caption + args.captions)[args.first_caption :]
    captions = [scene.caption for scene in stream]
    size = size_of(args)
    pipeline = Pipeline.tiny(dtype="float32", progress=False, staged=False)
    calibration = calibration_captions(args.samples, avoid=captions)
    samples = collect(pipeline, calibration, samples=args.samples, seed=args.seed, **size)
    recipe = Recipe.load(args.recipe)
    models = {}
    for name in args.methods:
        dit, _ = calibrate_module(pipeline.dit, samples, recipe, method(name), seed=args.seed)
        stored = effective_recipe(recipe, method(name))
        models[name] = dit, to_float_channels(pipeline.dit, dit, stored)
    sparsity = Sparsity(mask=args.mask, density=args.density)
    errors, sizes = attention_errors(
        pipeline, models, captions, sparsity=sparsity, seed=args.seed, **size
    )
    if args.json:
        relative = {
            name: np.round((found / sizes[:, None]).mean(axis=(0, 2)), 6).tolist()
            for name, found in errors.items()
        }
        print(json.dumps(relative))
    else:
        print(table(errors, sizes))


if __name__ == "__main__":
    main()
