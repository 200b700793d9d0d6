"""Checkpoints against a full-precision one: what `qsjax evaluate compare` does."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from qsjax.calibration import SettingsChanges
from qsjax.disk import write_atomically, writing
from qsjax.errors import InputError
from qsjax.evaluate.compare import Comparison, compare
from qsjax.evaluate.perceptual import lpips as measure_lpips
from qsjax.evaluate.plots import draw, write_sheet
from qsjax.evaluate.reference import Reference, reference_run
from qsjax.evaluate.repeats import Repeats
from qsjax.evaluate.side_by_side import write_row
from qsjax.evaluate.tables import NOTE, comparison_table, plain, summary
from qsjax.page import Page
from qsjax.pipeline import Pipeline
from qsjax.tiny.streams import HELD_OUT, held_out
from qsjax.versions import EVALUATION, versions
from qsjax.video import to_uint8


@dataclass(frozen=True, eq=False)
class Checkpoints:
    """The results of a comparison.

    Attributes:
        reference: the full-precision run.
        results: by the name of the checkpoint; the first is what the others are paired with.
    """

    reference: Reference
    results: Mapping[str, Comparison]

    def text(self) -> str:
        """A table and what its figures are."""
        first = next(iter(self.results)) if len(self.results) > 1 else None
        table = comparison_table(self._repeats(), baseline=first)
        return f"{table}\n\n{len(self.reference.captions)} clips. {NOTE}"

    def plain(self) -> dict[str, Any]:
        """Estimates, and the values of every clip, as plain data."""
        repeats = self._repeats()
        base = next(iter(repeats.values()))
        models = {
            name: {
                **plain(summary(repeats[name], None if repeats[name] is base else base)),
                **_clips(comparison),
            }
            for name, comparison in self.results.items()
        }
        return {
            "captions": list(self.reference.captions),
            "seed": self.reference.seed,
            "versions": versions(EVALUATION),
            "models": models,
        }

    def write(self, folder: Path, *, plots: bool = False) -> list[Path]:
        """Write report, table and a page with all of it, contact sheet and videos of the clips that were kept and, if asked for,
        plots; return the files.

        Raises:
            InputError: plots without matplotlib, or a place that cannot be written.
        """
        report, table = folder / "comparison.json", folder / "comparison.md"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(report, (json.dumps(self.plain(), indent=1) + "\n").encode())
        write_atomically(table, (self.text() + "\n").encode())
        written = [report, table]
        seen = {
            k: comparison.videos
            for k, comparison in self.results.items()
            if comparison.videos is not None
        }
        page = Page("Checkpoints against full precision")
        page.markdown(self.text())
        velocity = {k: 100 * one.velocity.mean(axis=1) for k, one in self.results.items()}
        page.chart(
            {k: values.tolist() for k, values in velocity.items()},
            across="step",
            up="velocity error, %",
        )
        if seen:
            shown = len(next(iter(seen.values())))
            full = {"full precision": to_uint8(self.reference.clips(shown))}
            captions = self.reference.captions[:shown]
            names = {k: Path(k).name or k for k in seen}  # short, if they still differ
            names = names if len({*names.values(), *full}) > len(names) else {}
            for number, caption in enumerate(captions):
                path = folder / f"comparison-{number + 1}.mp4"
                row = {names.get(k, k): clips[number] for k, clips in {**full, **seen}.items()}
                fps = self.reference.settings.fps
                written.append(write_row(row, path, fps=fps, comment=caption))
                page.video(path, caption)
            written.append(write_sheet({**full, **seen}, captions, folder / "comparison.png"))
            page.picture(written[-1], "frames of the same clips")
        drawn = draw(self._repeats(), folder / "comparison") if plots else []
        for path in drawn:
            page.picture(path)
        return [*written, *drawn, page.write(folder / "comparison.html")]

    def _repeats(self) -> dict[str, Repeats]:
        """One table row a checkpoint: it says nothing of other calibrations of its kind."""
        return {name: Repeats({0: one}, fixed=True) for name, one in self.results.items()}


def compare_checkpoints(
    reference: Pipeline,
    models: Mapping[str, Pipeline],
    captions: Sequence[str],
    *,
    seed: int = 0,
    batch: int = 8,
    lpips: bool = False,
    show: int = 0,
    progress: bool = False,
    **settings: Unpack[SettingsChanges],
) -> Checkpoints:
    """Sample `reference` and each of `models`, at the reference's settings and with its VAE and text encoders.

    Args:
        reference: full precision.
        models: by name, at least one; each model's DiT is released before the next is loaded.
        captions: one a clip.
        seed: clip i starts from the noise of `seed + i`.
        batch: clips sampled at once.
        lpips: measure LPIPS too.
        show: clips kept to look at.
        progress: show bars.
        **settings: of `reference_run`.

    Raises:
        InputError: no models or captions, models that cannot be compared, or LPIPS that cannot be measured.
    """
    if not models:
        raise InputError("no model to compare with the reference; name at least one")
    run = reference_run(reference, captions, seed=seed, batch=batch, progress=progress, **settings)
    results = {}
    for name, model in models.items():
        results[name] = compare(
            reference,
            run,
            model.dit,
            lpips=measure_lpips if lpips else None,
            show=show,
            label=name,
            progress=progress,
        )
        if model is not reference:
            model.release()
    return Checkpoints(run, results)


def read_captions(captions: str) -> list[str]:
    """Captions from a text file, one a line; or, of a number, that many held-out captions of the tiny model.

    Raises:
        InputError: no such file, or none in it.
    """
    if captions.isdecimal() and int(captions):
        return [scene.caption for scene in held_out(HELD_OUT, int(captions))]
    try:
        lines = Path(captions).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"`captions={captions!r}`: neither a number above 0 nor a text file that can be read ({error})"
        ) from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError(f"`captions={captions!r}`: the file holds no captions; write one a line")
    return texts


def _clips(comparison: Comparison) -> dict[str, Any]:
    return {"clips": comparison.to_mapping()}
