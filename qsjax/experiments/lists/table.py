"""The table of what lists lose: families of masks by the shape of their blocks."""

from collections.abc import Mapping

import numpy as np

from qsjax.evaluate.statistics import estimate, paired
from qsjax.evaluate.tables import markdown, shown
from qsjax.experiments.lists.measure import SHAPES, Lists, Measured

FAMILIES = {
    "svg": ("frame", "token"),
    "box": ("box",),
    "topk": ("topk",),
    "frame order": ("frame",),
    "token order": ("token",),
    "svg or box": ("frame", "token", "box"),
}
"""Rows of the table, and the lists among which a head chooses in each."""


def by_family(
    lists: Mapping[tuple[str, str], Lists], found: Measured
) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Error, recall and density of every family, a value a clip: each head has the lists that are best on the first half of the rows."""
    names, rows = list(lists), {}
    for shape in SHAPES:
        for family, members in FAMILIES.items():
            kinds = [names.index((shape, member)) for member in members]
            best = np.asarray(found.error)[:, :, kinds, 0].argmin(axis=2)[:, :, None]
            figures = {}
            for name, values in found._asdict().items():
                values = np.asarray(values)[:, :, kinds]
                chosen = np.take_along_axis(values[:, :, :, 1], best, axis=2)[:, :, 0]
                figures[name] = chosen.mean(axis=(0, 1, 3))
            figures["last"] = (best == len(members) - 1).mean(axis=(0, 1, 2, 4))
            rows[shape, family] = figures
    return rows


def table(rows: Mapping[tuple[str, str], Mapping[str, np.ndarray]]) -> str:
    """Markdown: a line a family, blocks of both shapes beside each other and their difference clip by clip."""
    square, tall = SHAPES
    lines = []
    for family in FAMILIES:
        one, other = rows[square, family], rows[tall, family]
        lines.append([
            family,
            shown(estimate(one["error"]), 3),
            shown(estimate(other["error"]), 3),
            shown(paired(other["error"], one["error"]), 3, signed=True),
            f"{100 * one['recall'].mean():.1f} %",
            f"{100 * other['recall'].mean():.1f} %",
            f"{100 * one['density'].mean():.1f} %",
            f"{100 * other['density'].mean():.1f} %",
            f"{100 * other['last'].mean():.0f} %" if len(FAMILIES[family]) > 1 else "",
        ])  # fmt: skip
    headers = ("", *(f"error, {shape}" for shape in SHAPES), "difference")
    headers += tuple(f"{name}, {shape}" for name in ("recall", "density") for shape in SHAPES)
    headers += ("heads of 64 x 16 with the last order",)
    return markdown(headers, lines)
