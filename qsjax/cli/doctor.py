"""`qsjax doctor`: the devices and libraries of this machine, and which implementations would run on it."""

import argparse
import json
import platform
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qsjax.cli.options import Options
from qsjax.versions import EVERYTHING, versions

if TYPE_CHECKING:
    import jax

_HEAD_DIM = 128  # HunyuanVideo's
_CHANNELS = 3072
_BLOCK = 128
_RECIPES = ("bf16", "w4a8", "quantsparse-w4a8-d15")


def add_arguments(options: Options) -> None:
    """The options of `qsjax doctor`."""
    options.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Print versions, devices, and every operation's implementations with the reasons why some cannot run."""
    report = examine()
    print(json.dumps(report, indent=1) if args.json else _text(report))
    return 0


def examine() -> dict[str, Any]:
    """The report as plain data."""
    import jax
    import jax.numpy as jnp

    from pallas_kernels.block_sparse_attention import BLOCK_SPARSE_ATTENTION
    from pallas_kernels.merge_heads import MERGE_HEADS
    from pallas_kernels.quantize_tokens import QUANTIZE_TOKENS
    from pallas_kernels.quantized_matmul import QUANTIZED_MATMUL
    from pallas_kernels.rotary_heads import ROTARY_HEADS
    from qsjax.dit.attention import DENSE_ATTENTION

    backend = jax.default_backend()
    cases: list[tuple[Any, str, dict[str, Any]]] = []
    for dtype in (jnp.bfloat16, jnp.float32):
        facts = {"dtype": jnp.dtype(dtype), "head_dim": _HEAD_DIM}
        cases.append((DENSE_ATTENTION, f"{jnp.dtype(dtype).name}, head size {_HEAD_DIM}", facts))
    heads = {"dtype": jnp.dtype(jnp.bfloat16), "head_dim": _HEAD_DIM}
    blocks = {"block_q": _BLOCK, "block_kv": _BLOCK}
    cases.append((BLOCK_SPARSE_ATTENTION, f"bfloat16, blocks of {_BLOCK}", {**heads, **blocks}))
    tokens = {"dtype": jnp.dtype(jnp.bfloat16), "channels": _CHANNELS, "rotated": 128}
    cases.append((QUANTIZE_TOKENS, f"{_CHANNELS} channels, rotated by 128", tokens))
    cases.append((ROTARY_HEADS, f"bfloat16, head size {_HEAD_DIM}", heads))
    cases.append((MERGE_HEADS, f"bfloat16, head size {_HEAD_DIM}", heads))
    for layout in ("bytes", "bytes_transposed", "int4"):
        facts = {"bits": 4, "layout": layout, "rows": _CHANNELS, "weight_only": False}
        cases.append((QUANTIZED_MATMUL, f"int8 x 4 bits, layout {layout}", facts))
    operations = {
        f"{operation.name} ({label})": {
            "chosen": operation.choose(backend=backend, **facts),
            "objections": operation.objections(backend=backend, **facts),
        }
        for operation, label, facts in cases
    }
    devices = [_device(device) for device in jax.devices()]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": versions(EVERYTHING),
        "backend": backend,
        "devices": devices,
        "operations": operations,
        "videos": videos(devices[0]["bytes"], backend),
    }


def videos(room: int | None, backend: str) -> dict[str, Any] | None:
    """For each recipe, the largest video of HunyuanVideo-13B that fits, as frames, height and width.

    None if the device's memory is unknown.
    """
    if room is None:
        return None
    from qsjax.budget import PlannedModel, Weights
    from qsjax.budget.fit import largest_video
    from qsjax.budget.run import Run
    from qsjax.settings import SamplingRecipe

    largest = {}
    for name in _RECIPES:
        recipe = SamplingRecipe.load(name) if name in SamplingRecipe.presets() else None
        weights = (recipe.weights if recipe else name) or "bf16"
        model = PlannedModel.find("hunyuan-13b", weights)
        sparse = None if recipe is None else recipe.sparse
        run = Run(
            model=model,
            weights=Weights.count(model.dit, model.recipe),
            settings=replace(model.settings, sparse=sparse),
            text_storage="int8",
            backend=backend,
        )
        largest[name] = largest_video(run, room)
    return largest


def _device(device: "jax.Device") -> dict[str, Any]:
    stats = device.memory_stats() or {}
    return {"kind": device.device_kind, "id": device.id, "bytes": stats.get("bytes_limit")}


def _text(report: dict[str, Any]) -> str:
    lines = [f"python {report['python']} on {report['platform']}"]
    lines += [
        f"  {name} {version or 'not installed'}" for name, version in report["libraries"].items()
    ]
    lines.append(f"backend {report['backend']}")
    for device in report["devices"]:
        memory = f", {device['bytes'] / 2**30:.1f} GiB" if device["bytes"] else ""
        lines.append(f"  device {device['id']}: {device['kind']}{memory}")
    if report["videos"] is not None:
        lines.append(
            "HunyuanVideo-13B, estimated, text encoders in int8, modulation weights released; frames x height x width that fit:"
        )
        for name, size in report["videos"].items():
            lines.append(
                f"  {name}: {'x'.join(map(str, size)) if size else 'none of the usual sizes'}"
            )
    for name, operation in report["operations"].items():
        lines.append(name)
        for implementation, objection in operation["objections"].items():
            verdict = "no"
            if implementation == operation["chosen"]:
                verdict = "runs"
            elif objection is None:
                verdict = "could run"
            reason = f", {objection}" if objection else ""
            lines.append(f"  {implementation}: {verdict}{reason}")
    return "\n".join(lines)
