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
# # Converting and calibrating
#
# From PyTorch files to a checkpoint in 4 bits, on the tiny model that ships with qsjax: convert, calibrate, compare with full
# precision, look at both. Four to five minutes on two cores, nothing to download. The 13B model takes the same commands; they are at the end.

# %% [markdown]
# Colab needs qsjax first; elsewhere this cell looks whether it is there. Where it is taken from, and why these versions:
# [colab_tpu_sample](colab_tpu_sample.ipynb).

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

# %%
import numpy as np
from IPython.display import Image, Video, display

import qsjax
from convert.bundled import tiny_model_directory
from qsjax.checkpoint import Manifest
from qsjax.cli import main
from qsjax.tiny.streams import CALIBRATION, held_out

# The tests run this notebook too, with as little as there can be.
QUICK = "QSJAX_QUICK" in os.environ
SAMPLES, EPOCHS, CLIPS, FRAMES, STEPS = (1, 1, 1, 5, 2) if QUICK else (8, 4, 4, 33, 30)
EDGE = 64
SIZE = ("--frames", FRAMES, "--height", EDGE, "--width", EDGE, "--steps", STEPS)
WORK = Path("convert_and_calibrate")


def run(*words):
    """A qsjax command; an error ends the cell."""
    command = [str(word) for word in words]
    print("$ qsjax", *command)
    if status := main(command):
        raise RuntimeError(f"qsjax {command[0]} ended with status {status}; its message is above")


# %% [markdown]
# ## The PyTorch files
#
# A folder as diffusers writes it, with safetensors and JSON only.

# %%
source = tiny_model_directory()
for file in sorted(source.rglob("*.safetensors")):
    print(f"{file.stat().st_size / 1e6:6.2f} MB  {file.relative_to(source)}")

# %% [markdown]
# ## Convert
#
# Tensor by tensor: memory follows the largest tensor. A key that no table knows is an error, not a warning. The folder has its final
# name only when it is whole; a stopped run goes on with the same command. `--verify` reads back what was written and makes every
# leaf again from the source.

# %%
run("convert", source, WORK / "float", "--verify", "--overwrite")

# %% [markdown]
# Rounding to nearest needs no calibration, and is what calibration has to beat:

# %%
run("convert", source, WORK / "rtn-w4a8", "--quantize", "rtn-w4a8", "--overwrite")

# %% [markdown]
# ## Calibrate
#
# Recipe `w4a8` (4-bit weights, 8-bit activations), method `msad`: smoothing, rotations and clips of each block are trained until its
# quantized output and its attention are near the float block's. Here it has 8 samples and 4 passes; the defaults, 20 and 15, take
# minutes and gain another decibel or two. (`qsjax demo` takes 8 samples and method `gptq`, which trains nothing.) The captions are of
# scenes that the tiny model was neither trained on nor is evaluated on.
#
# In the printed table a number below 1 is an error below rounding to nearest's.

# %%
captions = WORK / "captions.txt"
captions.write_text(
    "\n".join(scene.caption for scene in held_out(CALIBRATION, SAMPLES)), encoding="utf-8"
)
run(
    *("calibrate", "--model", WORK / "float", "--out", WORK / "w4a8", "--recipe", "w4a8"),
    *("--captions", captions, "--samples", SAMPLES, "--epochs", EPOCHS, *SIZE),
    *("--plot", WORK / "calibration.png", "--overwrite"),
)

# %% [markdown]
# Left: the loss of each block over its start, pass by pass. Middle: squared errors over rounding to nearest's. Right: every layer's
# ratio of signal to quantization noise, before and after.

# %%
display(Image(filename=str(WORK / "calibration.png")))

# %%
stored = {
    name: Manifest.read(WORK / name).data["components"]["dit"]["bytes"]
    for name in ("float", "rtn-w4a8", "w4a8")
}
for name, size in stored.items():
    print(f"{name:8}  transformer {size / 1e6:5.2f} MB, {stored['float'] / size:.2f} times smaller")

# %% [markdown]
# Learned rotations are float32 matrices for runs of 128 channels: much beside the tiny model's weights, 17 MB of 6.7 GB in the 13B
# model, which becomes 3.84 times smaller.

# %% [markdown]
# ## Compare with full precision
#
# Both checkpoints and the float one sample the same captions from the same noise. PSNR and SSIM are of decoded frames; the velocity
# error is that of single steps, at the latents of the full-precision run. Differences are taken clip by clip, so that few clips say
# something, and the standard error says how much.

# %%
models = ("--model", WORK / "rtn-w4a8", WORK / "w4a8")
run(
    *("evaluate", "compare", "--reference", WORK / "float", *models),
    *("--captions", CLIPS, "--batch", CLIPS, *SIZE, "--out", WORK / "comparison", "--plots"),
)

# %%
for picture in sorted((WORK / "comparison").glob("*.png")):
    print(picture.name)
    display(Image(filename=str(picture)))

# %% [markdown]
# ## Side by side
#
# Left full precision, right the calibrated checkpoint, from the same noise.

# %%
PROMPT = "a green square moves up over a light background"
videos = []
for name in ("float", "w4a8"):
    pipeline = qsjax.Pipeline.from_checkpoint(WORK / name, progress=False)
    videos.append(pipeline(PROMPT, seed=1, frames=FRAMES, height=EDGE, width=EDGE, steps=STEPS))
path = qsjax.write_video(
    np.concatenate(videos, axis=2), WORK / "side-by-side.mp4", fps=pipeline.settings.fps
)
LOOP = "controls loop autoplay muted playsinline"
display(Video(str(path), embed=True, width=512, html_attributes=LOOP))

# %% [markdown]
# ## The 13B model
#
# ```sh
# qsjax convert hf://hunyuanvideo-community/HunyuanVideo checkpoints/hunyuan --delete-source   # or HunyuanVideo/, a folder of yours
# qsjax convert HunyuanVideo/ checkpoints/rtn-w4a8 --quantize rtn-w4a8
# qsjax calibrate --model checkpoints/hunyuan --out checkpoints/w4a8 --frames 61 --height 480 --width 832 --plot calibration.png
# qsjax evaluate compare --reference checkpoints/hunyuan --model checkpoints/rtn-w4a8 checkpoints/w4a8 \
#     --captions captions.txt --batch 1 --frames 61 --height 480 --width 832 --out comparison --plots
# ```
#
# `--delete-source` downloads one file at a time and deletes it when its tensors are written, so that the disk holds one copy; a folder of
# yours is never touched. Captions for calibration are those of `configs/captions` unless a file is given. Blocks come off the disk one by one and every
# finished block is on disk whole: after Ctrl-C or a lost machine the same command goes on, with the same bits at the end. The
# comparison needs a device that holds the float transformer, 25.6 GB, and so does sampling the captions. What calibration takes on a chip, by the plan (estimates: it
# has not been run at this size):

# %%
size = ("--frames", 61, "--height", 480, "--width", 832)
run("plan", "--recipe", "w4a8", *size, "--calibration-size", "61x480x832")
