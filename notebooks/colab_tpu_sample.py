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
# In a fresh Colab the cell runs as it is. It takes the first that there is of
#
# * what its field or the variable `QSJAX_ADDRESS` names, else the project's address;
# * a wheel `qsjax-*.whl` beside the notebook or in the folder `qsjax` of a mounted Drive, the newest;
# * a checkout: the folder of the notebook, the one above it, or `qsjax` in it, as after `!git clone`;
# * a wheel that you upload: it asks for one where nothing else is there, or where you tick the box.
#
# It says what it found, and
#
# * asks for `jax==0.11.2`: qsjax needs a newer JAX than Colab's 0.7.2, and this is the newest one that runs with Colab's numpy
#   2.1.3 (0.12 needs 2.2, and a new numpy in a running session means a restart);
# * holds numpy, torch, transformers and huggingface_hub at the versions that are installed: pip fails rather than replace them;
# * takes the extra for the accelerator that is there. Of Colab's images only the one for TPUs has libtpu installed, which tells it
#   apart, and only there is the large libtpu that `qsjax[tpu]` brings of use. Do not import `torch_xla` afterwards: it is built
#   for the old one;
# * adds diffusers, from whose source text `qsjax convert` reads HunyuanVideo's prompt template. It is never imported;
# * restarts the session only if JAX was imported before and is replaced: then run all cells again.
#
# Outside Colab it only looks whether qsjax is there. The three notebooks have been run with the versions of Colab's list of August
# 2026 (`.ci/colab`), and not in Colab itself yet.

# %% cellView="form" tags=["install"]
# @title Install qsjax { display-mode: "form" }
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

# @markdown Leave the fields as they are, or say where qsjax is: its repository (https://...), a wheel or a folder.
QSJAX = ""  # @param {type:"string"}
UPLOAD_A_WHEEL = False  # @param {type:"boolean"}
ADDRESS = ""  # of the project, that of qsjax/address.py
JAX = "0.11.2"


def version(package):
    """The installed version; None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def uploaded():
    """A wheel from the browser; a browser numbers a file that it has sent before."""
    from google.colab import files

    print(
        "choose a wheel, qsjax-...-py3-none-any.whl (`pip wheel --no-deps .` in a checkout makes one)"
    )
    for name, content in files.upload().items():
        path = Path(re.sub(r" \(\d+\)", "", Path(name).name))
        path.write_bytes(content)
        return path
    raise RuntimeError(
        "no wheel was chosen: run the cell again, or say in its field where qsjax is"
    )


def road():
    """Where qsjax is, in words, and as pip takes it."""
    if UPLOAD_A_WHEEL:
        path = uploaded()
        return f"the wheel {path.name}, uploaded", path.resolve().as_uri()
    for name, given in (
        ("this cell's field", QSJAX),
        ("QSJAX_ADDRESS", os.environ.get("QSJAX_ADDRESS", "")),
        ("the project", ADDRESS),
    ):
        if "://" in given:
            return f"{given} ({name})", given if given.startswith(
                ("git+", "file:")
            ) else f"git+{given}"
        if given:
            if not Path(given).exists():
                raise RuntimeError(
                    f"{given} ({name}): is neither an address nor a file here; correct it"
                )
            return f"{given} ({name})", Path(given).resolve().as_uri()
    here, drive = Path.cwd(), Path("drive/MyDrive/qsjax")
    wheels = [path for folder in (here, drive) for path in folder.glob("qsjax-*.whl")]
    if wheels:
        path = max(wheels, key=lambda path: path.stat().st_mtime)
        return f"the wheel {path.name}", path.resolve().as_uri()
    for folder in (here, here.parent, here / "qsjax"):
        if (folder / "pyproject.toml").is_file() and (folder / "pallas_kernels").is_dir():
            return f"the checkout in {folder}", folder.resolve().as_uri()
    path = uploaded()
    return f"the wheel {path.name}, uploaded", path.resolve().as_uri()


def install():
    """Install what is not there, and restart the session only where an older library is in use already."""
    colab = "google.colab" in sys.modules
    spec = importlib.util.find_spec("qsjax")
    if version("qsjax") or (not colab and spec is not None and spec.origin):
        print(f"qsjax {version('qsjax') or spec.origin} is here, with jax {version('jax')}")
        return
    if not colab:
        raise RuntimeError(
            "qsjax is not installed: `pip install .` in a checkout of it, then run this cell again"
        )
    gpu = shutil.which("nvidia-smi") is not None
    tpu = importlib.util.find_spec("libtpu") is not None and not gpu
    extra = "[tpu]" if tpu else "[cuda]" if gpu else ""
    kept = {name: version(name) for name in ("numpy", "torch", "transformers", "huggingface_hub")}
    kept = [f"{name}=={number}" for name, number in kept.items() if number]
    found = (
        f"Python {sys.version.split()[0]}, {', '.join(kept)}, jax {version('jax') or 'not there'}"
    )
    print(f"found {found}; {'a TPU' if tpu else 'a GPU' if gpu else 'no accelerator'}")
    used = [name for name in ("jax", "jaxlib", "numpy", "ml_dtypes") if name in sys.modules]
    used = {name: getattr(sys.modules[name], "__version__", "?") for name in used}
    if "jax" in used:
        print(
            f"jax {used['jax']} is in use already: the session will restart if it has to be another"
        )
    where, source = road()
    print(f"installing qsjax{extra} from {where}, and jax {JAX}: some minutes")
    Path("kept.txt").write_text("\n".join(kept), encoding="utf-8")
    packages = [f"qsjax{extra} @ {source}", f"jax=={JAX}", "diffusers"]
    command = [sys.executable, "-m", "pip", "install", "-q", "-c", "kept.txt", *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:])
        raise RuntimeError(f"pip could not install qsjax from {where}; what it says is above")
    importlib.invalidate_caches()
    print(f"installed qsjax {version('qsjax')}, jax {version('jax')}")
    stale = [f"{name} {old}" for name, old in used.items() if old != version(name)]
    if stale:
        from IPython import get_ipython

        print(f"the session restarts, for {', '.join(stale)} was in use; then run all cells again")
        get_ipython().kernel.do_shutdown(True)


install()

# %% [markdown]
# ## What is here
#
# `qsjax doctor` lists versions, devices with their memory, and for every operation the implementation that would run and why the
# others would not. Commands run in this process, because a TPU belongs to one process at a time.

# %%
import contextlib

import jax
import numpy as np
from IPython.display import Video, display

import qsjax
from convert.bundled import tiny_model_directory
from pallas_kernels import targets
from qsjax.cache import keep_programs
from qsjax.cli import main
from qsjax.copying import copy_checkpoint, copy_programs
from qsjax.evaluate import psnr

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
# ## Kept for tomorrow
#
# A Colab machine and all that is on it is gone when the session ends. With the switch, the folder `qsjax` of your Drive keeps checkpoints
# and compiled programs, which cost minutes each: they are copied there when they are made, and taken from there in the next session. Half a
# copy has no checkpoint's name, and an interrupted one goes on. Programs count for the same kind of machine only. Of the 13B model
# about 15 GB are kept, which is all that a free Drive holds.

# %%
KEEP_ON_DRIVE = False  # @param {type:"boolean"}
# The tests keep theirs elsewhere.
KEPT = Path(os.environ.get("QSJAX_KEPT", "drive/MyDrive/qsjax"))
keeps = KEEP_ON_DRIVE or "QSJAX_KEPT" in os.environ
PROGRAMS = keep_programs()

if KEEP_ON_DRIVE and "google.colab" in sys.modules:
    from google.colab import drive

    drive.mount(str(Path("drive").resolve()))


def take(name):
    """A checkpoint that was kept, if it is not here."""
    if keeps and (KEPT / name).is_dir() and not Path(name).exists():
        print(f"{name}: taken from {KEPT}")
        copy_checkpoint(KEPT / name, name)


def keep(name):
    """A checkpoint and all programs, for the next session. A full Drive is said, and ends nothing."""
    if not keeps:
        return
    try:
        copy_checkpoint(name, KEPT / name)
        copy_programs(PROGRAMS, KEPT / "programs" / PROGRAMS.name)
        print(f"{name} and the compiled programs are in {KEPT}")
    except qsjax.QsjaxError as error:
        print(error)


if keeps:
    taken = copy_programs(KEPT / "programs" / PROGRAMS.name, PROGRAMS)
    print(f"{taken} compiled programs were taken from {KEPT}")

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
full = pipeline(PROMPT, seed=0, **TINY_SIZE)
print(full.shape, {stage: round(seconds, 1) for stage, seconds in pipeline.timings.items()})
path = qsjax.write_video(full, "tiny.mp4", fps=pipeline.settings.fps, comment=PROMPT)
LOOP = "controls loop autoplay muted playsinline"
display(Video(str(path), embed=True, width=256, html_attributes=LOOP))

# %% [markdown]
# ## From PyTorch files to a video, in two commands
#
# This function is the whole way; the 13B model takes it too. Weights are rounded to nearest (`rtn-w4a8`), which needs no calibration
# and is the coarsest of the methods: [convert_and_calibrate](convert_and_calibrate.ipynb) shows a better one. Of a model of the hub one
# file at a time is on the disk, and deleted when its tensors are written (`delete_source`): nothing is there twice.


# %%
SAVING = {"text_storage": "int8", "modulation": "released"}


def make_video(source, checkpoint, prompt, out, **settings):
    """Convert where there is no checkpoint yet, and sample; returns the frames."""
    take(checkpoint)
    if not Path(checkpoint).exists():
        of_hub = str(source).startswith("hf://")
        options = {"quantize": "rtn-w4a8", "text_storage": "int8", "delete_source": of_hub}
        print(qsjax.convert(source, checkpoint, **options))
        keep(checkpoint)
    pipeline = qsjax.Pipeline.from_checkpoint(checkpoint, staged=True, **SAVING)
    result = pipeline.generate(prompt, seed=0, **settings)
    print(result.timings)
    qsjax.write_video(result.frames, out, fps=result.settings.fps, comment=prompt)
    keep(checkpoint)
    return result.frames


# A small video has few tokens, and all of them matter to each other: 40 % of attention.
sparse = make_video(
    tiny_model_directory(),
    "tiny-w4a8",
    PROMPT,
    "tiny-w4a8.mp4",
    recipe="quantsparse-w4a8-d40",
    **TINY_SIZE,
)

# %% [markdown]
# Left full precision, right 4-bit weights and 40 % of attention with its cache (QuantSparse), from the same noise.

# %%
print(f"PSNR {psnr(sparse[None] / 255, full[None] / 255)[0]:.1f} dB")
beside = np.concatenate([full, sparse], axis=2)
path = qsjax.write_video(beside, "side-by-side.mp4", fps=pipeline.settings.fps, comment=PROMPT)
display(Video(str(path), embed=True, width=512, html_attributes=LOOP))

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
# The hub has LLaMA in 16 bits, CLIP and the autoencoder beside the transformer, in files of at most 10 GB; the checkpoint has LLaMA's
# layers in 8 bits, and its table of words (1.1 GB), CLIP and the autoencoder as they are. `qsjax convert` asks for the exact bytes.
stages = plan["sampling"]["stages"]
download = plan["bf16_bytes"] + 17 * GB
texts = stages["text encoders"]["text_weights"] + 1.3 * GB
stored = plan["weight_bytes"] + texts + stages["autoencoder"]["autoencoder_weights"]
(on_chip,) = plan["sampling"]["devices"]
print(f"{'x'.join(map(str, video_size))}, {plan['steps']} steps, on {planned}:")
print(f"  download about {download / GB:.0f} GB: {download / 6e9:.0f} minutes at 100 MB/s")
print(
    f"  on the disk about {stored / GB:.0f} GB, while it converts up to {stored / GB + 10:.0f} GB; free here {free / GB:.0f} GB"
)
print(f"  memory of the chip {on_chip['memory_bytes'] / GB:.0f} GB, of which the stages take about")
for stage, parts in stages.items():
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
# they were stopped, with the same command, and one copy of the weights is on the disk. A further prompt costs sampling only. Drive sends
# what it is given in the background: before you end a session in which something was kept, let `drive.flush_and_unmount()` wait for it.

# %%
RUN_13B = False  # @param {type:"boolean"}
PROMPT_13B = "a cat walks on the grass, realistic style"  # @param {type:"string"}
HUB = "hf://hunyuanvideo-community/HunyuanVideo"

if RUN_13B:
    if size is None:
        raise RuntimeError(f"the 13B model is not for this machine ({chip.name})")
    make_video(HUB, "hunyuan-w4a8", PROMPT_13B, "hunyuan.mp4", recipe=RECIPE, **SIZE)
    display(Video("hunyuan.mp4", embed=True, width=video_size[2], html_attributes=LOOP))
