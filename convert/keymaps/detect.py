"""Which layout a set of tensor names has, and whether it is complete."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from types import ModuleType
from typing import NamedTuple

from convert.containers.listing import first_few
from convert.keymaps import table
from convert.keymaps.table import Entry, Row
from convert.keymaps.transforms import Shape
from qsjax.dit.config import DiTConfig
from qsjax.errors import CheckpointError, InputError
from qsjax.text.config import ClipConfig, LlamaConfig
from qsjax.vae.config import VAEConfig

ComponentConfig = DiTConfig | VAEConfig | LlamaConfig | ClipConfig

COMPONENTS = ("dit", "vae", "llama", "clip")
TITLES = {
    "dit": "HunyuanVideo transformer",
    "vae": "HunyuanVideo VAE",
    "llama": "LLaMA text encoder",
    "clip": "CLIP text encoder",
}
_SHOWN = 12


class Layout(NamedTuple):
    """How a source names its tensors.

    Attributes:
        name: one of the layouts of the component's table.
        prefix: of every name.
    """

    name: str
    prefix: str = ""


def layouts(component: str) -> tuple[Layout, ...]:
    """Every layout that a component is known in."""
    known = _keymap(component).PREFIXES
    return tuple(Layout(name, prefix) for name, prefixes in known.items() for prefix in prefixes)


def expand(
    component: str, config: ComponentConfig, layout: str, prefix: str | None = None
) -> tuple[Row, ...]:
    """The rows of a component: each leaf, its shape, and the PyTorch tensors it is made of.

    Args:
        component: "dit", "vae", "llama" or "clip".
        config: the component's config dataclass.
        layout: "tencent", "diffusers" or "comfy" for the DiT, "hunyuan" for the VAE, "transformers" otherwise,
            or "llama_cpp" for LLaMA.
        prefix: of the names; None takes the layout's first.

    Raises:
        InputError: the component or the layout is unknown.
    """
    keymap = _keymap(component)
    if layout not in keymap.PREFIXES:
        raise InputError(
            f"{component} has no layout {layout!r}; known: {', '.join(keymap.PREFIXES)}"
        )
    first = keymap.PREFIXES[layout][0]
    entries = keymap.table(config)
    return tuple(table.expand(entries, layout, first if prefix is None else prefix))


def detect(component: str, config: ComponentConfig, names: Iterable[str], *, source: str) -> Layout:
    """The layout that shares most names with a source.

    Args:
        component: "dit", "vae", "llama" or "clip".
        config: the component's config dataclass.
        names: the tensor names of the source.
        source: where they come from, for the message.

    Raises:
        CheckpointError: none of the known names is among them, or the configuration has more blocks than they number.
    """
    present = frozenset(names)
    entries, most = _keymap(component).table(config), _numbered(present)
    # A table is as long as the configuration says; no longer than the file's own numbers go.
    within = [
        entry if entry.count is None else replace(entry, count=min(entry.count, most))
        for entry in entries
    ]
    scores = {
        layout: len(present & _names(table.expand(within, *layout)))
        for layout in layouts(component)
    }
    best = max(scores, key=lambda layout: scores[layout])
    if scores[best] == 0:
        known = ", ".join(_keymap(component).PREFIXES)
        raise CheckpointError(
            f"{source}: is not a {TITLES[component]} in a known layout ({known}); its first tensors are "
            f"{first_few(sorted(present)[:3]) or 'nothing'}"
        )
    _check_blocks(entries, most, best.name, source)
    return best


def check(
    component: str,
    config: ComponentConfig,
    layout: Layout,
    shapes: Mapping[str, Shape],
    *,
    source: str,
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Every tensor is used exactly once or is on the ignore list; anything else is reported, all together.

    Args:
        component: "dit", "vae", "llama" or "clip".
        config: the component's config dataclass.
        layout: as detected.
        shapes: tensor name -> shape of the source.
        source: where they come from, for the message.

    Returns:
        The rows to convert, and the names that are left out on purpose.

    Raises:
        CheckpointError: tensors are missing, surplus or of another shape.
    """
    rows = expand(component, config, *layout)
    expected = {name: shape for row in rows for name, shape in row.sources.items()}
    patterns = _keymap(component).ignored(config, layout.prefix)
    rest = sorted(set(shapes) - set(expected))
    ignored = tuple(
        name for name in rest if any(fnmatchcase(name, pattern) for pattern in patterns)
    )
    problems = {
        "missing": [
            f"{name} {list(shape)}" for name, shape in expected.items() if name not in shapes
        ],
        "surplus": [f"{name} {list(shapes[name])}" for name in rest if name not in set(ignored)],
        "wrong shape": [
            f"{name} expected {list(shape)} found {list(shapes[name])}"
            for name, shape in expected.items()
            if name in shapes and tuple(shapes[name]) != tuple(shape)
        ],
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{kind}: {first_few(found, _SHOWN)}" for kind, found in problems.items() if found
        )
        raise CheckpointError(
            f"{source}: does not fit the {TITLES[component]} of its configuration ({layout.name} layout); {listed};"
            f" give the config that belongs to it or download the file again"
        )
    return rows, ignored


def _keymap(component: str) -> ModuleType:
    if component not in COMPONENTS:
        raise InputError(f"no component {component!r}; known: {', '.join(COMPONENTS)}")
    return importlib.import_module(f"convert.keymaps.{component}")


def _numbered(names: Iterable[str]) -> int:
    """How many blocks names number at most: one more than the largest number between dots."""
    numbers = {
        part for name in names for part in name.split(".") if part.isdecimal() and len(part) <= 4
    }
    return 1 + max(map(int, numbers), default=-1)


def _check_blocks(entries: Sequence[Entry], most: int, layout: str, source: str) -> None:
    for entry in entries:
        if entry.count is not None and entry.count > most:
            raise CheckpointError(
                f"{source}: has at most {most} blocks by the names of its tensors, and its configuration {entry.count} as in "
                f"{entry.names[layout][0]}; give the config that belongs to it"
            )


def _names(rows: Iterable[Row]) -> frozenset[str]:
    return frozenset(name for row in rows for name in row.sources)
