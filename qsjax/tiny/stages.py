"""The stages of training, each from the files of the stages before it to files of its own."""

import logging
from pathlib import Path
from typing import Any

from flax import nnx

from qsjax.dit import DiT
from qsjax.tiny import bundle, dit_training, latents, loop, vae_training
from qsjax.tiny.dit_training import DIT_CONFIG, DiTTraining
from qsjax.tiny.vae_training import VAE_CONFIG, Half, VAETraining
from qsjax.vae import VAE

logger = logging.getLogger("qsjax.tiny")
HALVES: tuple[Half, ...] = ("decoder", "encoder")

# Streams of clips that never meet: fitting, training of each part, and what is held out.
FIT, TRAIN_VAE, TRAIN_DIT, HELD_OUT = 12345, 1, 2, 99


def run(stage: str, options: Any) -> None:
    """Run the stage with the options of the command line."""
    {"data": _data, "vae": _vae, "dit": _dit, "bundle": _bundle}[stage](options)


def _data(options: Any) -> None:
    path = basis_path(options.work)
    if not path.exists():
        latents.save(path, latents.fit(options.seed + FIT))


def _dit(options: Any) -> None:
    training = DiTTraining(phases=options.phases) if options.phases else DiTTraining()
    basis, prompts = latents.load(basis_path(options.work)), dit_training.prompt_table()
    dit = DiT(DIT_CONFIG, rngs=nnx.Rngs(options.seed))
    loop.run(
        label="dit",
        directory=options.work / "dit",
        state=dit_training.initial_state(dit, training),
        step=dit_training.make_step(dit, training, prompts.encoded),
        batch=dit_training.batches(basis, prompts, training, options.seed + TRAIN_DIT),
        steps=training.steps,
        seed=options.seed,
        save_every=100,
    )


def load_dit(work: Path, seed: int = 0) -> DiT:
    """The averaged weights of the newest checkpoint."""
    dit = DiT(DIT_CONFIG, rngs=nnx.Rngs(seed))
    state = dit_training.initial_state(dit, DiTTraining())
    state, _ = loop.restore(work / "dit", state)
    return nnx.merge(nnx.split(dit)[0], state.average)


def basis_path(work: Path) -> Path:
    """Where stage data leaves the latent space."""
    return work / "basis.npz"


def load_vae(work: Path, seed: int = 0) -> VAE:
    """The averaged weights of the newest checkpoints of both halves."""
    vae = vae_training.new_vae(seed)
    for half in HALVES:
        training = VAETraining()
        state, _ = loop.restore(work / half, vae_training.initial_state(vae, half, training))
        nnx.update(vae_training.halves(vae, half), state.average)
    return vae


def _vae(options: Any) -> None:
    training = VAETraining() if options.steps is None else VAETraining(steps=options.steps)
    basis, vae = latents.load(basis_path(options.work)), vae_training.new_vae(options.seed)
    for half in HALVES:
        loop.run(
            label=half,
            directory=options.work / half,
            state=vae_training.initial_state(vae, half, training),
            step=vae_training.make_step(vae, half, training),
            batch=vae_training.crops(basis, training, options.seed + TRAIN_VAE),
            steps=training.steps,
            seed=options.seed,
        )


def _bundle(options: Any) -> None:
    destination = options.output or bundle.assets_directory()
    dit, vae = load_dit(options.work, options.seed), load_vae(options.work, options.seed)
    size = bundle.write_bundle(destination, dit, vae, scaling_factor=VAE_CONFIG.scaling_factor)
    logger.info("%s: %d bytes", destination, size)
