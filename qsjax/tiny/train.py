"""`python -m qsjax.tiny.train --stage data|vae|dit|distil|bundle`: how the bundled model was made.

Stages, in this order (vae and dit may run at the same time): `data` fits the latent space, `vae` trains the
autoencoder towards it, `dit` trains the transformer, `distil` teaches it guidance in one pass, `bundle` writes the
PyTorch folder. Each stage is resumable: run it again with the same work folder.
"""

import argparse
import logging
import sys
from pathlib import Path

import jax

from qsjax.errors import QsjaxError, on_command_line
from qsjax.tiny.training import stages
from qsjax.tiny.training.phases import Phase


def main(arguments: list[str] | None = None) -> int:
    """Run one stage or all of them; 0, or 2 with one line on bad input."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        chosen = stages.Options(
            work=options.work,
            seed=options.seed,
            phases=Phase.parse(options.phases) if options.phases else None,
            matmul_dtype=options.matmul_dtype,
            evaluate_every=options.evaluate_every,
            output=options.output,
            start=options.start,
        )
        if options.cpu_devices > 1:
            jax.config.update("jax_num_cpu_devices", options.cpu_devices)
        options.work.mkdir(parents=True, exist_ok=True)
        # XLA compiles a training step for minutes on a busy CPU; a resumed run should not pay twice.
        jax.config.update("jax_compilation_cache_dir", str((options.work / "compiled").resolve()))
        for stage in stages.STAGES if options.stage == "all" else (options.stage,):
            stages.STAGES[stage](chosen)
    except QsjaxError as error:
        print(f"qsjax.tiny.train: {on_command_line(error)}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m qsjax.tiny.train", description=__doc__)
    parser.add_argument(
        "--stage", choices=(*stages.STAGES, "all"), default="all", help="default: all"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("outputs/tiny"),
        help="checkpoints, logs, sheets (default: outputs/tiny)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of data, noise and initial weights")
    parser.add_argument(
        "--phases",
        help="FRAMESxSIZExBATCHxSTEPS,... instead of the stage's own (vae, dit, distil);"
        " a longer list continues a finished run",
    )
    parser.add_argument(
        "--matmul-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the operands of the DiT's matmuls; bfloat16 wants a GPU or a CPU with AMX (default: float32)",
    )
    parser.add_argument(
        "--cpu-devices",
        type=int,
        default=1,
        help="split a batch over so many devices made of the CPU's cores (default: 1)",
    )
    parser.add_argument(
        "--evaluate-every",
        type=int,
        default=500,
        help="steps of dit and distil between samples, scored and shown; a multiple of 100, 0 is never (default: 500)",
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="qsjax checkpoint to go on from: stage data takes its latent space, vae, dit and distil begin with its weights, bundle keeps its VAE"
        " (default: new ones)",
    )
    parser.add_argument("--output", type=Path, help="folder of the bundle (default: the package's)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
