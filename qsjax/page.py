"""A page of HTML that needs nothing else: text, tables, charts, pictures and videos in one file, without scripts or anything from elsewhere."""

import base64
import html
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from qsjax.disk import write_atomically
from qsjax.video import check_writable

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1d1d1f; }}
table {{ border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .3rem .8rem .3rem 0; text-align: left; white-space: nowrap; }}
pre {{ overflow-x: auto; background: #f6f6f6; padding: .8rem; }}
figure {{ margin: 1.5rem 0; }}
figcaption {{ color: #555; }}
img, video, svg {{ max-width: 100%; height: auto; }}
</style></head><body>
<h1>{title}</h1>
"""
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which colour-blind people can tell apart."""
_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 620, 12, 236
_TYPES = {".png": "image/png", ".mp4": "video/mp4"}


class Page:
    """Collects what a page shows, from the top down. All text is escaped.

    Args:
        title: of the page.
    """

    def __init__(self, title: str) -> None:
        self._parts = [_HEAD.format(title=_text(title))]

    def heading(self, text: str) -> None:
        """A heading."""
        self._parts.append(f"<h2>{_text(text)}</h2>\n")

    def paragraph(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{_text(text)}</p>\n")

    def preformatted(self, text: str) -> None:
        """Lines as they are."""
        self._parts.append(f"<pre>{_text(text)}</pre>\n")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table."""
        head = "".join(f"<th>{_text(cell)}</th>" for cell in headers)
        body = "".join(
            f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>\n" for row in rows
        )
        self._parts.append(
            f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>\n"
        )

    def markdown(self, text: str) -> None:
        """Headings, tables and paragraphs, as the reports of experiments have them."""
        for block in text.split("\n\n"):
            lines = [line for line in block.splitlines() if line.strip()]
            if len(lines) > 1 and all(line.startswith("|") for line in lines):
                headers, _, *rows = ([c.strip() for c in x.strip("|").split("|")] for x in lines)
                self.table(headers, rows)
            elif len(lines) == 1 and lines[0].startswith("#"):
                self.heading(lines[0].lstrip("# "))
            elif lines:
                self.paragraph(" ".join(lines))

    def chart(
        self, lines: Mapping[str, Sequence[float]], *, across: str, up: str, first: int = 1
    ) -> None:
        """Lines over whole numbers; values that are not finite are left out.

        Args:
            lines: values by label.
            across, up: what the axes show.
            first: number of the first value.
        """
        finite = [value for values in lines.values() for value in values if math.isfinite(value)]
        count = max(map(len, lines.values()), default=0)
        if not finite:
            return
        levels = _levels(min(0.0, *finite), max(finite))
        low, high = levels[0], levels[-1]
        parts = [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" font-size="12">'
        ]
        for level in levels:
            y = _BOTTOM - (_BOTTOM - _TOP) * (level - low) / (high - low)
            parts.append(f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" stroke="#ddd"/>')
            parts.append(
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{level:.10g}</text>'
            )
        for number, values in enumerate(lines.values()):
            points = [
                f"{_LEFT + (_RIGHT - _LEFT) * at / max(count - 1, 1):.1f},"
                f"{_BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low):.1f}"
                for at, value in enumerate(values)
                if math.isfinite(value)
            ]
            color = _COLORS[number % len(_COLORS)]
            line = f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="2"/>'
            parts.append(line)
        ends = f'<text x="{_LEFT}" y="{_BOTTOM + 18}">{first}</text>'
        ends += (
            f'<text x="{_RIGHT}" y="{_BOTTOM + 18}" text-anchor="end">{first + count - 1}</text>'
        )
        middle = (_LEFT + _RIGHT) // 2
        parts.append(
            f'{ends}<text x="{middle}" y="{_BOTTOM + 34}" text-anchor="middle">{_text(across)}</text></svg>'
        )
        labels = "".join(
            f' <span style="color:{_COLORS[number % len(_COLORS)]}">&#9632;</span> {_text(label)}'
            for number, label in enumerate(lines)
        )
        self._figure("".join(parts), f"{_text(up)}:{labels}")

    def picture(self, path: Path, caption: str = "") -> None:
        """A PNG, which becomes a part of the page."""
        self._figure(f'<img alt="{_text(caption)}" src="{_data(path)}">', _text(caption))

    def video(self, path: Path, caption: str = "") -> None:
        """An mp4, which becomes a part of the page."""
        source = f'<video controls loop muted playsinline src="{_data(path)}"></video>'
        self._figure(source, _text(caption))

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
        """Write the page; the file appears whole or not at all.

        Raises:
            InputError: it exists and `overwrite` is off, or cannot be written.
        """
        target = Path(path)
        check_writable(target, overwrite=overwrite)
        whole = "".join([*self._parts, "</body></html>\n"])
        write_atomically(target, whole.encode("utf-8", "replace"))
        return target

    def _figure(self, content: str, caption: str) -> None:
        self._parts.append(f"<figure>{content}<figcaption>{caption}</figcaption></figure>\n")


def _levels(low: float, high: float) -> list[float]:
    """Round numbers for an axis, four to eight of them, from below `low` to above `high`."""
    span = high - low if high > low else 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(size * power for size in (1, 2, 5, 10) if span <= 6 * size * power)
    first, last = math.floor(low / step), math.ceil((low + span) / step)
    return [number * step for number in range(first, last + 1)]


def _text(text: str) -> str:
    """A text that may come from anyone: no markup, and no control characters."""
    return html.escape("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text))


def _data(path: Path) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{_TYPES[path.suffix]};base64,{encoded}"
