# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sampling on a Colab TPU
#
# First the bundled tiny model, on whatever this machine has; then, if `RUN_13B` is set, HunyuanVideo-13B in 4 bits with
# sparse attention. Choose *Runtime > Change runtime type > v5e-1 TPU* (or v6e-1, or a GPU); the tiny model also runs on a CPU.
#
# **What is measured and what is not.** qsjax has not run on a TPU yet. Its programs are built by the TPU's compiler, which counts
# their memory, and the kernels' numbers are computed by interpreters. All times of the 13B model below are estimates.

# %% [markdown]
# ## Install
#
# The cell does nothing outside Colab. In Colab it
#
# * asks for `jax==0.11.2`: qsjax needs a newer JAX than Colab's 0.7.2, and this is the newest one that runs with Colab's numpy
#   2.1.3 (0.12 needs 2.2, and a new numpy in a running session means a restart);
# * holds numpy, torch, transformers and huggingface_hub at the versions that are installed: pip fails rather than replace them;
# * takes the extra for the accelerator that is there. Of Colab's images only the one for TPUs has libtpu installed, which tells it
#   apart, and only there is the large libtpu that `qsjax[tpu]` brings of use. Do not import `torch_xla` afterwards: it is built
#   for the old one;
# * adds diffusers, from whose source text `qsjax convert` reads HunyuanVideo's prompt template. It is never imported.
#
# Colab's versions are those of its list of August 2026, with which these requirements have been resolved; the cell itself has not
# run in Colab yet.

# %% tags=["install"]
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = ""  # qsjax's, as pip takes it: git+https://HOST/OWNER/qsjax@COMMIT or file:///FOLDER

if "google.colab" in sys.modules:
    if not REPOSITORY:
        raise ValueError("set REPOSITORY to the address of qsjax's repository")
    if "jax" in sys.modules:
        raise RuntimeError(
            "JAX is imported already: Runtime > Restart session, then this cell first"
        )
    gpu = shutil.which("nvidia-smi") is not None
    tpu = importlib.util.find_spec("libtpu") is not None and not gpu
    extra = "[tpu]" if tpu else "[cuda]" if gpu else ""
    kept = [
        f"{name}=={importlib.metadata.version(name)}"
        for name in ("numpy", "torch", "transformers", "huggingface_hub")
        if importlib.util.find_spec(name) is not None
    ]
    Path("kept.txt").write_text("\n".join(kept), encoding="utf-8")
    packages = [f"qsjax{extra} @ {REPOSITORY}", "jax==0.11.2", "diffusers"]
    command = [sys.executable, "-m", "pip", "install", "-q", "-c", "kept.txt", *packages]
    subprocess.run(command, check=True)

# %% [markdown]
# ## What is here
#
# `qsjax doctor` lists versions, devices with their memory, and for every operation the implementation that would run and why the
# others would not. Commands run in this process, because a TPU belongs to one process at a time.

# %%
import contextlib
import os

import jax
from IPython.display import Video, display

import qsjax
from convert.bundled import tiny_model_directory
from pallas_kernels import targets
from qsjax.cli import main

# The tests run this notebook too, with a small video and few steps; else the tiny model's own size is taken.
QUICK = "QSJAX_QUICK" in os.environ
TINY_SIZE = {"frames": 5, "steps": 3} if QUICK else {}
GB = 1e9


def run(*words):
    """A qsjax command; an error ends the cell."""
    command = [str(word) for word in words]
    print("$ qsjax", *command)
    if status := main(command):
        raise RuntimeError(f"qsjax {command[0]} ended with status {status}; its message is above")


run("doctor")
memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
free = shutil.disk_usage(".").free
print(f"host memory {memory / GB:.0f} GB, free disk {free / GB:.0f} GB")

# %% [markdown]
# ## What suits the chip
#
# The recipe is `quantsparse-w4a8-d15`: 4-bit weights, 8-bit activations, 15 % of attention, what the lists leave out remembered in
# int8. What differs is the size of the video.
#
# | chip | 13B model | largest step, by the chip's compiler |
# |---|---|---|
# | TPU v5e, 16 GB | 61 x 480 x 832 | 13.98 GB |
# | TPU v6e, 32 GB | 61 x 544 x 960 | 16.73 GB |
# | H100, H200 | 61 x 544 x 960 | not asked at this size |
# | other GPUs of which JAX gets 20 GB or more | 61 x 480 x 832 | not asked |
# | anything else | the tiny model only | |
#
# On all of them text encoders, transformer and autoencoder are on the chip one after the other, the text encoders in int8
# (`text_storage="int8"`), and the modulation weights, a quarter of the transformer, are released before the first step
# (`modulation="released"`).

# %%
RECIPE = "quantsparse-w4a8-d15"
SMALL, LARGE = (61, 480, 832), (61, 544, 960)
CHOICES = {
    "v5e": ("v5e-1", SMALL),
    "v6e": ("v6e-1", LARGE),
    "h100": ("h100", LARGE),
    "h200": ("h200", LARGE),
}

chip = targets.current()
has = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
device, size = CHOICES.get(chip.name, (None, None))
if size is None and chip.backend == "gpu" and has >= 20 * GB:
    size = SMALL
print(f"chip {chip.name}, backend {chip.backend}, memory for JAX {has / GB:.1f} GB")
print("13B model:", "x".join(map(str, size)) if size else "not on this machine")

# %% [markdown]
# ## The tiny model
#
# 4 million parameters in HunyuanVideo's architecture, part of the package; it knows moving shapes only. The first call compiles.

# %%
PROMPT = "a red circle moves left over dark stripes"

pipeline = qsjax.Pipeline.tiny(progress=False)
video = pipeline(PROMPT, seed=0, **TINY_SIZE)
print(video.shape, {stage: round(seconds, 1) for stage, seconds in pipeline.timings.items()})
path = qsjax.write_video(video, "tiny.mp4", fps=pipeline.settings.fps, comment=PROMPT)
LOOP = "controls loop autoplay muted playsinline"
display(Video(str(path), embed=True, width=256, html_attributes=LOOP))

# %% [markdown]
# ## From PyTorch files to a video, in two commands
#
# This function is the whole way; the 13B model takes it too. Weights are rounded to nearest (`rtn-w4a8`), which needs no calibration
# and is the coarsest of the methods: [convert_and_calibrate](convert_and_calibrate.ipynb) shows a better one.


# %%
SAVING = {"text_storage": "int8", "modulation": "released"}


def make_video(source, checkpoint, prompt, out, **settings):
    """Convert where there is no checkpoint yet, and sample."""
    if not (Path(checkpoint) / "manifest.json").is_file():
        print(qsjax.convert(source, checkpoint, quantize="rtn-w4a8"))
    pipeline = qsjax.Pipeline.from_checkpoint(checkpoint, staged=True, **SAVING)
    result = pipeline.generate(prompt, seed=0, **settings)
    print(result.timings)
    return qsjax.write_video(result.frames, out, fps=result.settings.fps)


# A small video has few tokens, and all of them matter to each other: 40 % of attention.
make_video(
    tiny_model_directory(),
    "tiny-w4a8",
    PROMPT,
    "tiny-w4a8.mp4",
    recipe="quantsparse-w4a8-d40",
    **TINY_SIZE,
)
display(Video("tiny-w4a8.mp4", embed=True, width=256, html_attributes=LOOP))

# %% [markdown]
# ## What the 13B model would take
#
# From `qsjax plan`, which loads nothing; where this machine has no chip for the model, for a v5e. Memory is the plan's estimate, stage
# by stage; with `--compile` it asks the compiler instead, in some minutes. The floor in time takes every step at the chip's peak
# rates: no program is faster. What share of them is reached has not been measured yet; the second figure assumes the share that
# the plan assumes of calibration. Compiling, some minutes once a session, encoding and decoding come on top.

# %%
planned, video_size = device or "v5e-1", size or SMALL
SIZE = dict(zip(("frames", "height", "width"), video_size, strict=True))
plan = qsjax.plan_memory("hunyuan-13b", recipe=RECIPE, device=planned, **SIZE, **SAVING)
kinds = plan["steps_by_kind"].values()
floor = sum(kind["steps"] * kind["floor_seconds"][planned] for kind in kinds) / 60
share = plan["calibration"]["assumed_share_of_peak"]
# LLaMA in 16 bits, CLIP and the autoencoder; `qsjax convert` asks the hub for the exact bytes before it downloads anything.
others = 17 * GB
download, stored = plan["bf16_bytes"] + others, plan["weight_bytes"] + others
(on_chip,) = plan["sampling"]["devices"]
print(f"{'x'.join(map(str, video_size))}, {plan['steps']} steps, on {planned}:")
print(f"  download about {download / GB:.0f} GB, converted about {stored / GB:.0f} GB")
print(f"  free disk here {free / GB:.0f} GB")
print(f"  memory of the chip {on_chip['memory_bytes'] / GB:.0f} GB, of which the stages take about")
for stage, parts in plan["sampling"]["stages"].items():
    named = ", ".join(f"{name.replace('_', ' ')} {part / GB:.1f}" for name, part in parts.items())
    print(f"    {stage:13} {sum(parts.values()) / GB:5.1f} GB ({named})")
print(f"  denoising: floor {floor:.1f} min, at {share:.0%} of the peaks {floor / share:.1f} min")

# %% [markdown]
# ## A token for the hub
#
# Optional: the files are public, a token only lifts limits on their download. In Colab it is the secret `HF_TOKEN` (the key symbol on
# the left), elsewhere the environment variable. It is not printed.

# %%
if "google.colab" in sys.modules and "HF_TOKEN" not in os.environ:
    from google.colab import userdata

    with contextlib.suppress(userdata.SecretNotFoundError, userdata.NotebookAccessError):
        os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")
print("token for the hub:", "given" if os.environ.get("HF_TOKEN") else "none")

# %% [markdown]
# ## HunyuanVideo-13B
#
# The weights are under Tencent's licence, which limits use by territory, and LLaMA's under Meta's: read both before setting the
# switch. `qsjax convert` asks the hub for the exact bytes and refuses a disk that is too small; download and conversion go on where
# they were stopped, with the same command. Once the checkpoint is there, what was downloaded (`~/.cache/qsjax/hub`) may be deleted. A
# further prompt costs the `qsjax sample` command only.

# %%
RUN_13B = False
PROMPT_13B = "a cat walks on the grass, realistic style"
HUB = "hf://hunyuanvideo-community/HunyuanVideo"

if RUN_13B:
    if size is None:
        raise RuntimeError(f"the 13B model is not for this machine ({chip.name})")
    make_video(HUB, "hunyuan-w4a8", PROMPT_13B, "hunyuan.mp4", recipe=RECIPE, **SIZE)
    display(Video("hunyuan.mp4", embed=True, width=video_size[2], html_attributes=LOOP))
