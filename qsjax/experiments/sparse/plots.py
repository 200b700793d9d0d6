"""Pictures of what sparse attention costs: PSNR over density by policy, and bars for sweeps and baselines."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qsjax.evaluate.plots import bars, figure_for, save
from qsjax.experiments.report import file_name, groups
from qsjax.experiments.sparse.lines import SparseLine

_BY_DENSITY = re.compile(r"^(?P<weights>float|W4A8), (?P<mask>[^,]+), \d+ %, shift (?P<shift>\S+)$")
"""Groups of the grid that differ in density only."""


def draw_sparse(lines: Sequence[SparseLine], folder: Path) -> list[Path]:
    """A plot over densities for all groups that differ in density only, bars for each of the others.

    Args:
        lines: of the grid, tables one after the other.
        folder: for the PNGs.

    Raises:
        InputError: matplotlib is missing, or a place that cannot be written.
    """
    written, over_density = [], {}
    for group, members in groups(lines):
        if settings := _BY_DENSITY.match(group):
            over_density.setdefault(settings.groups(), []).extend(members)
        else:
            path = folder / f"{file_name(group)}-psnr.png"
            values = {one.row.label: one.psnr for one in members}
            written.append(bars(values, path, title=group))
    for (weights, mask, shift), members in over_density.items():
        title = f"{weights}, {mask}, shift {shift}"
        written.append(plot_densities(members, folder / f"{file_name(title)}.png", title=title))
    return written


def plot_densities(lines: Sequence[SparseLine], path: Path, *, title: str = "") -> Path:
    """PSNR over the density that is asked for: a line a policy, the mean over clips with its standard error.

    Args:
        lines: sparse rows; those of one label are one line.
        path: PNG to write.
        title: of the picture.

    Raises:
        InputError: nothing to draw, matplotlib is missing, or a place that cannot be written.
    """
    figure, axes = figure_for(len(lines) // 2, path)
    for label in dict.fromkeys(one.row.label for one in lines):
        line = sorted(
            (
                (one.row.sparse.sparsity.density, one.estimate("psnr"))
                for one in lines
                if one.row.label == label and one.row.sparse is not None
            ),
            key=lambda point: point[0],
        )
        at = 100 * np.array([density for density, _ in line])
        means = [psnr.mean for _, psnr in line]
        errors = [psnr.error or 0.0 for _, psnr in line]
        axes.errorbar(at, means, yerr=errors, marker="o", markersize=3, capsize=2, label=label)
    axes.set(xlabel="pairs of video blocks computed, %", ylabel="PSNR, dB", title=title)
    axes.legend(fontsize=7)
    return save(figure, path)
