"""The stages of training, each from the files of the stages before it to files of its own."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qsjax.disk import write_atomically
from qsjax.dit import DiT, load_dit
from qsjax.settings import SamplingPlan
from qsjax.tiny import bundle, checker, data, sheets
from qsjax.tiny.configs import DIT_CONFIG, VAE_CONFIG
from qsjax.tiny.streams import FIT, HELD_OUT, TRAIN_DISTIL, TRAIN_DIT, TRAIN_VAE, held_out
from qsjax.tiny.training import dit as dit_training
from qsjax.tiny.training import latents, loop, objectives, sampling
from qsjax.tiny.training import vae as vae_training
from qsjax.tiny.training.dit import DiTTraining
from qsjax.tiny.training.phases import Curriculum, Phase
from qsjax.tiny.training.vae import Half
from qsjax.vae import VAE, load_vae

logger = logging.getLogger("qsjax.tiny")
HALVES: tuple[Half, ...] = ("decoder", "encoder")

# Scenes and Euler steps of the evaluations during training, and how they are guided.
_SCENES, _STEPS, _GUIDANCE = 16, 15, 4.0

# About what the shipped model saw, in one pass: small clips, then both lengths in turns.
_TURN = (Phase(33, 64, 16, 130), Phase(65, 64, 8, 50))
DIT = DiTTraining(
    curriculum=Curriculum(
        phases=(
            *(Phase(33, 32, 24, 1000), Phase(33, 48, 16, 900), Phase(33, 64, 16, 4500)),
            *(13 * _TURN),
            Phase(65, 96, 4, 270),
            *(16 * _TURN),
        )
    )
)
DISTIL = DiTTraining(
    curriculum=Curriculum(phases=(Phase(33, 64, 16, 430),), warm_up=20, decay=0.6),
    learning_rate=5e-4,
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says.

    Attributes:
        work: folder of checkpoints, logs and sheets.
        seed: of data, noise and initial weights.
        phases: instead of the stage's own.
        matmul_dtype: of the DiT's training.
        evaluate_every: steps between evaluations of the DiT; 0 never.
        output: folder of the bundle; None is the package's.
        start: qsjax checkpoint that data takes the latent space from, and whose weights vae, dit and distil begin with;
            None is new ones (for distil: those of dit).
    """

    work: Path
    seed: int = 0
    phases: tuple[Phase, ...] | None = None
    matmul_dtype: str = "float32"
    evaluate_every: int = 500
    output: Path | None = None
    start: Path | None = None

    @property
    def basis(self) -> Path:
        """Where stage data leaves the latent space."""
        return self.work / "basis.npz"

    def curriculum(self, default: Curriculum) -> Curriculum:
        """A stage's own curriculum, with the phases asked for, if any."""
        return replace(default, phases=self.phases) if self.phases else default


def fit_latents(options: Options) -> None:
    """Fit the latent space, or read it off the VAE to start with; score real clips with the checker, and show some."""
    if not options.basis.exists():
        seed = options.seed + FIT
        if options.start:
            vae = load_vae(options.start)
            basis = latents.read_off(
                lambda video: np.asarray(vae.encode(video[None]).mode()[0]), seed
            )
        else:
            basis = latents.fit(seed)
        latents.save(options.basis, basis)
    basis = latents.load(options.basis)
    scenes = held_out(options.seed + HELD_OUT, 128)
    videos = [data.render(scene, 33, 64, 64) for scene in scenes]
    linear = [latents.decode(basis, latents.encode(basis, video)) for video in videos]
    sheets.write(videos, scenes, options.work / "real.png")
    report = {
        "checker": checker.score(zip(videos, scenes, strict=True))._asdict(),
        "linear_psnr": sheets.decibels(videos, linear),
    }
    write_atomically(options.work / "data.json", (json.dumps(report, indent=1) + "\n").encode())
    logger.info("real clips: %s", report)


def train_vae(options: Options) -> None:
    """Train decoder and encoder; then encode and decode held-out clips."""
    basis = latents.load(options.basis)
    model = load_vae(options.start) if options.start else vae_training.new_vae(options.seed)
    for half in HALVES:
        training = vae_training.TRAINING[half]
        training = replace(training, curriculum=options.curriculum(training.curriculum))
        state = loop.run(
            label=half,
            directory=options.work / half,
            state=vae_training.initial_state(model, half, training),
            step=vae_training.make_step(model, half, training),
            batch=vae_training.crops(basis, training.curriculum, options.seed + TRAIN_VAE),
            steps=training.curriculum.steps,
            seed=options.seed,
            save_every=500,
            log_every=50,
        )
        nnx.update(vae_training.halves(model, half), state.average)
    scenes = held_out(options.seed + HELD_OUT, 16)
    videos = [data.render(scene, 33, 64, 64) for scene in scenes]
    decoded = [np.asarray(model.decode(model.encode(video[None]).mode())[0]) for video in videos]
    sheets.write(decoded, scenes, options.work / "vae.png")
    logger.info("encoded and decoded: %.2f dB", sheets.decibels(videos, decoded))


def train_dit(options: Options) -> None:
    """Train the transformer on the flow of the data."""
    basis = latents.load(options.basis)  # before a model is made, which takes seconds
    model = (
        load_dit(options.start, dtype=jnp.float32)
        if options.start
        else DiT(DIT_CONFIG, rngs=nnx.Rngs(options.seed))
    )
    plan = SamplingPlan(steps=_STEPS, shift=objectives.SHIFT, guidance=1.0, true_cfg=_GUIDANCE)
    _train("dit", options, basis, DIT, model, objectives.flow, options.seed + TRAIN_DIT, plan)


def distil(options: Options) -> None:
    """Teach the transformer to follow its guidance embedder: one pass a step instead of two."""
    model = (
        load_dit(options.start, dtype=jnp.float32)
        if options.start
        else trained_dit(options.work, "dit")
    )
    teacher = dit_training.velocity(model, options.matmul_dtype)(nnx.split(model)[1])
    objective = objectives.guided_flow(teacher)
    plan = SamplingPlan(steps=_STEPS, shift=objectives.SHIFT, guidance=_GUIDANCE)
    basis = latents.load(options.basis)
    _train("distil", options, basis, DISTIL, model, objective, options.seed + TRAIN_DISTIL, plan)


def write_bundle(options: Options) -> None:
    """Write the PyTorch folder from the newest weights of all parts; the VAE to start with, if any, is kept."""
    destination = options.output or bundle.assets_directory()
    transformer = trained_dit(options.work, "distil")
    autoencoder = load_vae(options.start) if options.start else trained_vae(options.work)
    size = bundle.write_bundle(
        destination, transformer, autoencoder, scaling_factor=VAE_CONFIG.scaling_factor
    )
    logger.info("%s: %d bytes", destination, size)


STAGES: dict[str, Callable[[Options], None]] = {
    "data": fit_latents,
    "vae": train_vae,
    "dit": train_dit,
    "distil": distil,
    "bundle": write_bundle,
}


def trained_dit(work: Path, stage: str) -> DiT:
    """The averaged weights of the newest checkpoint of a stage.

    Raises:
        CheckpointError: the stage has none.
    """
    loop.require(work / stage, stage)
    model = DiT(DIT_CONFIG, rngs=nnx.Rngs(0))
    state, _ = loop.restore(work / stage, dit_training.initial_state(model, DIT), required=stage)
    return nnx.merge(nnx.split(model)[0], state.average)


def trained_vae(work: Path) -> VAE:
    """The averaged weights of the newest checkpoints of both halves.

    Raises:
        CheckpointError: there are none.
    """
    for half in HALVES:
        loop.require(work / half, "vae")
    model = vae_training.new_vae(0)
    for half in HALVES:
        initial = vae_training.initial_state(model, half, vae_training.TRAINING[half])
        state, _ = loop.restore(work / half, initial, required="vae")
        nnx.update(vae_training.halves(model, half), state.average)
    return model


def _train(
    stage: str,
    options: Options,
    basis: latents.Basis,
    training: DiTTraining,
    model: DiT,
    objective: objectives.Objective,
    stream: int,
    plan: SamplingPlan,
) -> None:
    training = replace(
        training,
        curriculum=options.curriculum(training.curriculum),
        matmul_dtype=options.matmul_dtype,
    )
    scenes = held_out(options.seed + HELD_OUT, _SCENES)

    def evaluate(state: dit_training.TrainState, step: int) -> dict[str, float]:
        if not options.evaluate_every or step % options.evaluate_every:
            return {}
        averaged = nnx.merge(nnx.split(model)[0], jax.device_get(state.average))
        phase, _ = training.curriculum.place(step - 1)
        size = (phase.frames, phase.size, phase.size)
        samples = sampling.sample(averaged, scenes, plan, size, seed=options.seed)
        sheet = options.work / f"{stage}_{step:06d}.png"
        score = sampling.judge(samples, scenes, lambda z: latents.decode(basis, z), sheet)
        return {name: float(value) for name, value in score._asdict().items()}

    loop.run(
        label=stage,
        directory=options.work / stage,
        state=dit_training.initial_state(model, training),
        step=dit_training.make_step(model, training, objective),
        batch=dit_training.batches(basis, training.curriculum, stream),
        steps=training.curriculum.steps,
        seed=options.seed,
        save_every=100,
        on_save=evaluate,
    )
