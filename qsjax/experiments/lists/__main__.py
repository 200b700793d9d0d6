"""`python -m qsjax.experiments.lists`: what lists lose in one step of the bundled model."""

import argparse
import json

import numpy as np

from qsjax.experiments.lists.measure import SHAPES, measure_run
from qsjax.experiments.lists.table import by_family, table
from qsjax.pipeline import Pipeline
from qsjax.tiny.streams import HELD_OUT, held_out


def main() -> None:
    """Measure the bundled model, print the table, or the figures of every clip as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("frames", 33), ("height", 64), ("width", 64), ("steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--captions", type=int, default=8)
    parser.add_argument("--first-caption", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--density", type=float, default=0.15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    stream = held_out(HELD_OUT, args.first_caption + args.captions)[args.first_caption :]
    size = {name: getattr(args, name) for name in ("frames", "height", "width", "steps")}
    pipeline = Pipeline.tiny(progress=False)
    captions = [scene.caption for scene in stream]
    lists, found = measure_run(pipeline, captions, density=args.density, seed=args.seed, **size)
    rows = by_family(lists, found)
    if args.json:
        plain = {
            f"{shape}, {family}": {name: np.round(x, 5).tolist() for name, x in figures.items()}
            for (shape, family), figures in rows.items()
        }
        print(json.dumps(plain))
    else:
        tiles = {shape: lists[shape, "box"].layout.tile for shape in SHAPES}
        print(f"{table(rows)}\n\nTiles of box and topk: {tiles}")


if __name__ == "__main__":
    main()
