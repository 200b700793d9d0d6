"""The figures of the method, as SVG files beside this one: `python docs/figures/draw.py` (needs the extra `plot`).

Masks, kinds of steps, bytes and seconds are what the package computes, so that a figure shows what the code does.
"""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from masks import FAMILIES, GRID, token_mask
from matplotlib.figure import Figure

import qsjax
from qsjax.settings import SamplingRecipe

FOLDER = Path(__file__).resolve().parent
RECIPE = "quantsparse-w4a8-d15"
VIDEO = {"frames": 61, "height": 480, "width": 832}
COLOURS = {"dense": "#4c566a", "refresh": "#d08770", "sparse": "#5e81ac", "other": "#a3be8c"}


def main() -> None:
    """Draw all figures."""
    # Without a date and with fixed identifiers the same figure is the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "qsjax", "font.size": 9, "axes.spines.top": False})
    matplotlib.rcParams.update({"axes.spines.right": False, "figure.constrained_layout.use": True})
    for draw in (masks, steps, size, seconds):
        figure = draw()
        figure.savefig(FOLDER / f"{draw.__name__}.svg", metadata={"Date": None}, facecolor="white")
        plt.close(figure)


def masks() -> Figure:
    """Which pairs of tokens each family of masks computes, in the model's order of tokens."""
    figure, axes = plt.subplots(2, 4, figsize=(8, 4.5))
    tokens = int(np.prod(GRID))
    for axis, (title, family) in zip(axes.flat, FAMILIES.items(), strict=True):
        mask = token_mask(family)
        axis.imshow(mask, cmap="Blues", vmin=0, vmax=1.4, interpolation="nearest")
        axis.set_title(f"{title}\n{mask.mean():.0%} of the pairs", fontsize=9)
        axis.set_xticks([0, tokens]), axis.set_yticks([0, tokens])
        axis.spines[:].set_visible(True)
    axes[1, 0].set_xlabel("keys"), axes[1, 0].set_ylabel("queries")
    return figure


def steps() -> Figure:
    """The kinds of a run's steps, how much attention each computes, and which cache it reads."""
    plan = SamplingRecipe.load(RECIPE).sparse
    assert plan is not None
    kinds = plan.kinds(50)
    share = {"dense": 1.0, "refresh": 1.0, "sparse": plan.sparsity.density}
    figure, axis = plt.subplots(figsize=(8, 2.6))
    for kind, height in share.items():
        places = [step for step, found in enumerate(kinds) if found == kind]
        label = f"{len(places)} {kind}" + ("" if height == 1 else f", {height:.0%} of attention")
        axis.bar(places, height, 0.8, color=COLOURS[kind], label=label)
    refreshes = [step for step, kind in enumerate(kinds) if kind == "refresh"]
    for first, after in zip(refreshes, [*refreshes[1:], len(kinds)], strict=True):
        if after > first + 1:
            arrow = {"arrowstyle": "->", "color": COLOURS["refresh"], "lw": 1.2}
            axis.annotate("", (after - 0.7, 0.32), (first + 0.4, 0.32), arrowprops=arrow)
    axis.set(xlabel="step of 50", ylabel="attention computed", ylim=(0, 1.05), xlim=(-0.8, 49.8))
    axis.text(refreshes[1] + 0.6, 0.37, "cache", color=COLOURS["refresh"], fontsize=8)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def size() -> Figure:
    """Where the bytes go: the stored transformer, and what is in memory in each stage of a run on a v5e."""
    plan = qsjax.plan_memory(recipe=RECIPE, device="v5e-1", **VIDEO)
    parts, stages = plan["weight_bytes_by_part"], plan["sampling"]["stages"]
    whole = qsjax.plan_memory(weights="bf16", density=1.0, device="v5e-1", **VIDEO)
    rows = {
        "stored, bf16": whole["weight_bytes_by_part"],
        f"stored, {plan['recipe'].upper()}": parts,
        **{f"sampling: {name}": stage for name, stage in stages.items()},
    }
    figure, axis = plt.subplots(figsize=(8, 3))
    palette = plt.get_cmap("tab20").colors
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    for name in names:
        widths = np.array([row.get(name, 0) for row in rows.values()]) / 1e9
        lefts = [sum(b for a, b in r.items() if names.index(a) < names.index(name)) / 1e9 for r in rows.values()]  # fmt: skip
        colour = palette[names.index(name)]
        axis.barh(list(rows), widths, left=lefts, color=colour, label=name.replace("_", " "))
    axis.axvline(16, color="black", lw=1, ls="--")
    axis.annotate("memory of a v5e", (16.2, 3.9), fontsize=8)
    axis.invert_yaxis(), axis.set_xlabel("GB; the stages are estimates, 61 x 480 x 832")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def seconds() -> Figure:
    """The estimated time of a run on a v5e, by kind of step, beside bfloat16 with dense attention."""
    plan = qsjax.plan_memory(recipe=RECIPE, device="v5e-1", **VIDEO)
    run = plan["run_time_estimate"]["v5e-1"]
    counts = {kind: row["steps"] for kind, row in plan["steps_by_kind"].items()}
    figure, axis = plt.subplots(figsize=(8, 1.9))
    left, decoding = 0.0, run["decoding_seconds"]
    for kind, time in run["steps_seconds"].items():
        label = f"{counts[kind]} {kind}"
        axis.barh("QuantSparse", time, left=left, color=COLOURS[kind], label=label)
        left += time
    axis.barh("QuantSparse", decoding, left=left, color=COLOURS["other"], label="decoding")
    rival = run["bf16_dense_seconds"] - decoding
    axis.barh("bf16, dense", rival, color=COLOURS["dense"])
    axis.barh("bf16, dense", decoding, left=rival, color=COLOURS["other"])
    axis.set_xlabel("seconds for 50 steps at 61 x 480 x 832 on one v5e, estimated by its compiler")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


if __name__ == "__main__":
    main()
