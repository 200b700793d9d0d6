"""`python -m qsjax.tiny.train --stage data|vae|dit|bundle`: how the bundled model was made.

Stages, in this order (vae and dit may run at the same time): `data` fits the latent space, `vae` trains the
autoencoder towards it, `dit` trains the transformer, `bundle` writes the PyTorch folder. Each stage is resumable: run it again
with the same work folder.
"""

import argparse
import logging
import sys
from pathlib import Path

import jax

from qsjax.errors import QsjaxError
from qsjax.tiny import stages
from qsjax.tiny.dit_training import Phase

STAGES = ("data", "vae", "dit", "bundle")


def main(arguments: list[str] | None = None) -> int:
    """Run one stage or all of them; 0, or 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m qsjax.tiny.train", description=__doc__)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="default: all")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("outputs/tiny"),
        help="checkpoints, logs, sheets (default: outputs/tiny)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of data, noise and initial weights")
    parser.add_argument("--steps", type=int, help="optimizer steps of each half (stage vae)")
    parser.add_argument(
        "--phases",
        type=_phases,
        help="FRAMESxSIZExBATCHxSTEPS,... (stage dit); a longer list continues a finished run",
    )
    parser.add_argument("--output", type=Path, help="folder of the bundle (default: the package's)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        # XLA compiles a training step for minutes on a busy CPU; a resumed run should not pay twice.
        jax.config.update("jax_compilation_cache_dir", str((options.work / "compiled").resolve()))
        for stage in STAGES if options.stage == "all" else (options.stage,):
            stages.run(stage, options)
    except QsjaxError as error:
        print(f"qsjax.tiny.train: {error}", file=sys.stderr)
        return 2
    return 0


def _phases(text: str) -> tuple[Phase, ...]:
    try:
        return tuple(Phase(*map(int, part.split("x"))) for part in text.split(","))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not FRAMESxSIZExBATCHxSTEPS,..., for example 17x32x16x700,17x48x8x900"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
