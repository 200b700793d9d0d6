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
# # A tour of the kernels
#
# `pallas_kernels` stands alone: it needs JAX and nothing else of qsjax. An operation has a float32 reference, which says what it
# means, an implementation in XLA for any backend, and Pallas kernels for TPU and GPU. All of them run here: with `@interpret` after
# its name a kernel's numbers are computed by Pallas' interpreter, on any machine and slowly. Sizes are small for that reason.
#
# The kernels have been built for v5e, v6e, v5p and H100 by their compilers. The GPU's have run on an H200, the TPU's not yet on a chip.

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
import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import (
    Additive,
    BlockLists,
    Complement,
    UnsupportedError,
    attention_with_residual,
    block_sparse_attention,
    pack,
    quantized_matmul,
    unpack,
)
from pallas_kernels.block_sparse_attention import BLOCK_SPARSE_ATTENTION
from pallas_kernels.block_sparse_attention.case import AttentionCase
from pallas_kernels.quantized_matmul import QUANTIZED_MATMUL
from pallas_kernels.quantized_matmul.bench import MatmulCase
from pallas_kernels.roofline import Peaks
from pallas_kernels.targets import TARGETS

backend = jax.default_backend()
random = np.random.default_rng(0)


def error(found, expected):
    """Root mean square, relative."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return np.sqrt(np.square(found - expected).mean() / np.square(expected).mean())


# %% [markdown]
# ## Packed weights
#
# A weight is a symmetric integer with a scale for its output channel. Two 4-bit values share a byte, and they are not neighbours: byte
# `[k, n]` holds rows `k` and `k + K/2`, so that unpacking gives two contiguous halves and moves nothing across lanes.

# %%
K, N = 512, 128
kernel = random.normal(size=(K, N)).astype(np.float32)
w_scale = np.abs(kernel).max(axis=0) / 7
integers = np.clip(np.round(kernel / w_scale), -8, 7).astype(np.int8)

weight = pack(integers, bits=4)
(plane,) = weight.planes
first = np.asarray(plane).view(np.uint8)[0, 0]
print(
    f"byte [0, 0] is {first:#04x}: w[0, 0] = {integers[0, 0]}, w[{K // 2}, 0] = {integers[K // 2, 0]}"
)
print(f"the integers come back exactly: {np.array_equal(unpack(weight), integers)}")
wide = 2 * K * N
for bits in (4, 6, 8):
    limit = 2 ** (bits - 1) - 1
    values = np.clip(np.round(kernel / np.abs(kernel).max(axis=0) * limit), -limit - 1, limit)
    size = pack(values.astype(np.int8), bits=bits).nbytes
    print(f"{bits} bits: {size:6} bytes, {wide / size:.2f} times smaller than bfloat16")

# %% [markdown]
# ## Who can serve a call
#
# Every implementation says in a clause why it cannot serve a call, or nothing. `auto` takes the first without an objection, a name gets
# that implementation or an error, and nothing falls back silently. `qsjax doctor` prints the same for the shapes of the 13B model.


# %%
def objections(operation, backends, **facts):
    """What each implementation says on each backend."""
    for name in backends:
        print(f"{operation.name} on {name}, {facts}")
        for one, objection in operation.objections(backend=name, **facts).items():
            print(f"  {one:10} {objection or 'can'}")


facts = {"bits": 4, "layout": "bytes", "rows": K, "weight_only": False}
objections(QUANTIZED_MATMUL, [backend, "interpret"], **facts)
objections(QUANTIZED_MATMUL, ["interpret"], **{**facts, "rows": 300})
print("auto takes", QUANTIZED_MATMUL.choose(backend=backend, **facts))

# %%
elsewhere = "gpu" if backend == "tpu" else "tpu"
try:
    QUANTIZED_MATMUL.choose(elsewhere, backend=backend, **facts)
except UnsupportedError as reason:
    print(reason)

# %% [markdown]
# ## The product
#
# `quantized_matmul` multiplies int8 tokens by packed weights; sums are int32 and exact, scales, bias, GELU, gate and residual are applied
# in float32, and the result is cast once. TPU and CPU want N last in memory (layout `bytes`), tensor cores K (`bytes_transposed`).

# %%
M = 64
tokens = random.normal(size=(M, K)).astype(np.float32)
x_scale = np.abs(tokens).max(axis=1) / 127
x = np.clip(np.round(tokens / x_scale[:, None]), -128, 127).astype(np.int8)
bias, residual, gate = (random.normal(size=size).astype(np.float32) for size in (N, (M, N), N))


def product(implementation, layout="bytes", **extras):
    """The call with everything fused, in float32."""
    packed = pack(integers, bits=4, layout=layout)
    given = (jnp.asarray(x), jnp.asarray(x_scale), packed, jnp.asarray(w_scale))
    return quantized_matmul(
        *given,
        **{name: jnp.asarray(value) for name, value in extras.items()},
        activation="gelu_tanh" if extras else "none",
        out_dtype=jnp.float32,
        implementation=implementation,
    )


fused = {"bias": bias, "residual": residual, "gate": gate}
expected = product("reference", **fused)
for implementation, layout in (
    ("xla", "bytes"),
    ("tpu@interpret", "bytes"),
    ("gpu@interpret", "bytes_transposed"),
):
    off = error(product(implementation, layout, **fused), expected)
    print(f"{implementation:14} off by {off:.1e} of the reference")
print(
    f"4-bit weights and 8-bit tokens against floats: {error(product('xla'), tokens @ kernel):.1%}"
)

# %% [markdown]
# The last line is quantization itself, on random numbers and without calibration. The others are float32 roundings behind exact sums.

# %% [markdown]
# ## Lists of blocks
#
# Attention is computed where lists say so: for each block of queries the blocks of keys that it sees. A list is data: its entries
# and its length may change without a new compilation, only the longest possible one is part of the program. Here is a band, with the
# last block as text, which sees all and is seen by all.

# %%
TOKENS, HEADS, SIZE, BLOCK = 768, 2, 128, 128
lists = BlockLists.from_band(TOKENS, 129, block_q=BLOCK, block_kv=BLOCK, dense_from=TOKENS - BLOCK)
for row, count, entries in zip(
    lists.block_map()[0, 0], lists.counts[0, 0], lists.indices[0, 0], strict=True
):
    print("".join("#" if seen else "." for seen in np.asarray(row)), count, entries)
print(f"computed: {float(lists.executed_density()):.0%} of the blocks")

# %%
facts = {"dtype": jnp.dtype(jnp.float32), "block_q": BLOCK, "block_kv": BLOCK}
objections(BLOCK_SPARSE_ATTENTION, ["interpret"], **facts, head_dim=SIZE)
objections(BLOCK_SPARSE_ATTENTION, ["interpret"], **facts, head_dim=96)

# %% [markdown]
# ## What the lists leave out
#
# A refreshing step computes attention in full, at the cost of one dense pass: the listed keys S and the others R are computed once each and
# merged by their log-sum-exp. It keeps what the next steps will miss, in one of two forms:
#
# * `Additive`: the difference D = O - O_S, added to what a sparse step computes;
# * `Complement`: O_R with its log-sum-exp, weighed against the current O_S by a = sigmoid(lse_S - lse_R). As long as queries, keys and
#   values are the same this is the full softmax, not an approximation of it. With `follow=0.5` it keeps O_R - O_S / 2 instead: the rest
#   is taken to move half as far as the listed keys' attention does, `qsjax`'s default.


# %%
def heads(key):
    """Random queries, keys or values."""
    return jax.random.normal(jax.random.key(key), (1, TOKENS, HEADS, SIZE))


def attend(qkv, **options):
    """Attention over the listed blocks."""
    return block_sparse_attention(*qkv, lists, **options)


everything = BlockLists.from_band(TOKENS, TOKENS, block_q=BLOCK, block_kv=BLOCK)
refresh = [heads(key) for key in range(3)]
whole = attention_with_residual(*refresh, lists, implementation="xla")
others, others_lse = whole.others, whole.others_lse
additive = Additive(whole.out - whole.listed)
complement = Complement(others, None, others_lse)
following = Complement(others - whole.listed / 2, None, others_lse, follow=0.5)
print(f"the lists hold {float(whole.recall.mean()):.0%} of the attention mass")

# %% [markdown]
# A later step has moved on. What is cached is stale by then; how much is lost depends on how far the step is.

# %%
print("moved by    no cache    additive  complement   following")
for moved in (0.0, 0.1, 0.3):
    later = [x + moved * heads(10 + number) for number, x in enumerate(refresh)]
    full = block_sparse_attention(*later, everything, implementation="reference")
    caches = (None, additive, complement, following)
    ways = [error(attend(later, cache=cache, implementation="xla"), full) for cache in caches]
    print(f"{moved:8.1f}", *(f"{way:11.2%}" for way in ways))

# %% [markdown]
# Random queries and keys are the worst case: every key is worth about the same, and the lists hold little more than their share; each moves
# by itself, and there is nothing to follow. Video
# attention is concentrated; on the tiny model's videos the cache gains 14 dB at 15 % ([docs/sparse_attention.md](../docs/sparse_attention.md)).
#
# ## The implementations agree
#
# Lists, text and the cache in one kernel, against the float32 reference. Cached values may be int8 with a scale for every token of
# every head, a quarter of the bytes; the kernel reads them as they are.

# %%
scale = jnp.abs(others).max(axis=-1) / 127  # [B, L, H]
stored = jnp.round(others / scale[..., None]).astype(jnp.int8)
caches = {
    "no cache": None,
    "additive": additive,
    "complement": complement,
    "complement, int8": Complement(stored, scale.swapaxes(1, 2), others_lse),
}
for name, cache in caches.items():
    expected = attend(later, cache=cache, implementation="reference")
    for implementation in ("xla", "tpu@interpret", "gpu@interpret"):
        off = error(attend(later, cache=cache, implementation=implementation), expected)
        print(f"{name:17} {implementation:14} off by {off:.1e}")

# %% [markdown]
# ## The roofline
#
# No program is faster than its products at the chip's peak rate, nor than its bytes at the memory's bandwidth; whichever is longer
# is the floor. Peaks are the vendors'. The layer is a projection of the 13B model, W4A8; its attention is 24 heads over 24,960 video
# tokens and 256 of text, a video of 61 x 480 x 832, with a sixth of the blocks.

# %%
VIDEO = 24960 + 256
cases = [MatmulCase("proj", m, 3072, 3072, 4, "xla") for m in (1, 256, VIDEO)]
listed = VIDEO // BLOCK // 6
cases.append(AttentionCase("sixth", VIDEO, 24, SIZE, BLOCK, BLOCK, "xla", listed=listed))
cases.append(AttentionCase("dense", VIDEO, 24, SIZE, BLOCK, BLOCK, "xla"))
for case in cases:
    print(case.name)
    for name in ("v5e", "v6e", "h100"):
        peaks = Peaks.of(TARGETS[name])
        print(f"  {name:5} {1e6 * case.work.seconds(peaks):12.1f} us, {case.work.bound(peaks)}")

# %% [markdown]
# These are floors, not measurements. What a TPU's compiler expects of the kernels, without a TPU, is printed by
# `qsjax bench kernels --target v5e`, in minutes; on a chip the same command measures. Results so far:
# [docs/benchmarks.md](../docs/benchmarks.md).
