"""The page itself: Gradio's components around what `Desk` says. Nothing is decided here."""

import os
from collections.abc import Sequence
from importlib import resources
from typing import Any

from qsjax.address import install
from qsjax.errors import InputError
from qsjax.serving import VideoMaker
from qsjax.ui import html
from qsjax.ui.desk import FIELDS, Desk

_EVERY = 0.5
"""Seconds from look to look of an open page."""
# Told of clicks on cards; a card plays while the pointer is over it.
_CARDS = """
element.addEventListener('click', event => {
  const card = event.target.closest('[data-id]');
  if (card) trigger('click', {id: card.dataset.id, action: card.dataset.action});
});
element.addEventListener('pointerover', event => { if (event.target.matches('video')) event.target.play().catch(() => {}); });
element.addEventListener('pointerout', event => { if (event.target.matches('video')) event.target.pause(); });
"""
# `innerHTML` does not start a video by itself in every browser.
_PLAY = """
watch('value', () => element.querySelectorAll('video[autoplay]').forEach(video => {
  video.muted = true; video.play().catch(() => {});
}));
"""


def import_gradio() -> Any:
    """Gradio, which neither tells anybody that it runs nor asks for newer versions.

    Raises:
        InputError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise InputError(f"the page needs Gradio; {install('ui')}") from error
    return gradio


def style(gradio: Any) -> dict[str, Any]:
    """Arguments of `launch` that say how the page looks: fonts of the reader's system, nothing from elsewhere."""
    font = gradio.themes.utils.fonts.Font
    sans = [font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "sans-serif")]
    mono = [font(name) for name in ("ui-monospace", "Consolas", "monospace")]
    theme = gradio.themes.Base(
        primary_hue="blue", neutral_hue="slate", radius_size="lg", font=sans, font_mono=mono
    )
    sheet = resources.files("qsjax.ui").joinpath("style.css").read_text(encoding="utf-8")
    return {"theme": theme, "css": sheet}


def make_page(desk: Desk, maker: VideoMaker, examples: Sequence[str], where: str) -> Any:
    """The page, ready to be launched.

    Args:
        desk: of all open pages.
        maker: for the form's defaults and choices.
        examples: prompts to click on.
        where: one sentence for the head of the page.
    """
    gr = import_gradio()
    stored, limits = maker.pipeline.settings, maker.limits
    with gr.Blocks(title="qsjax", analytics_enabled=False) as page:
        chosen, last, parts = gr.State(""), gr.State(""), gr.State(("", "", ""))
        gr.HTML(f'<div class="qs-head"><h1>qsjax</h1><p>{html.escape(where)}</p></div>')
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                prompt = gr.Textbox(
                    label="Prompt", lines=3, max_lines=8, placeholder="What the video shows", elem_id="prompt"
                )  # fmt: skip
                gr.Examples([[text] for text in examples], prompt, label="For example", api_visibility="private")  # fmt: skip
                with gr.Row():
                    generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=2)
                    cancel = gr.Button("Cancel", interactive=False, elem_id="cancel", scale=1)
                refused = gr.HTML("", elem_id="refused")
                with gr.Row():
                    frames = gr.Number(stored.frames, label="Frames", precision=0, min_width=80)
                    width = gr.Number(stored.width, label="Width", precision=0, min_width=80)
                    height = gr.Number(stored.height, label="Height", precision=0, min_width=80)
                steps = gr.Slider(1, limits.steps, stored.steps, step=1, label="Steps", elem_id="steps")  # fmt: skip
                recipe = gr.Dropdown(
                    [("as the checkpoint has it", ""), *((name, name) for name in maker.recipes)],
                    value="",
                    label="Recipe",
                    info="Which steps have sparse attention, and which are left out",
                    elem_id="recipe",
                )
                seed = gr.Textbox(
                    label="Seed", placeholder="empty: another video each time", elem_id="seed"
                )
                compare = gr.Checkbox(
                    label="Beside full precision, with PSNR and SSIM",
                    visible=maker.reference is not None,
                    elem_id="compare",
                )
                with gr.Accordion("More settings", open=False):
                    negative = gr.Textbox(label="Negative prompt", info="Used with true guidance above 1")  # fmt: skip
                    with gr.Row():
                        guidance = gr.Number(stored.guidance, label="Guidance", min_width=80)
                        true_cfg = gr.Number(stored.true_cfg, label="True guidance", min_width=80)
                    with gr.Row():
                        shift = gr.Number(stored.shift, label="Shift", min_width=80)
                        fps = gr.Number(stored.fps, label="Frames a second", precision=0, min_width=80)  # fmt: skip
            with gr.Column(scale=7, min_width=360):
                status = gr.HTML("", elem_id="status")
                result = gr.HTML("", elem_id="result", js_on_load=_PLAY)
        gr.HTML('<h2 class="qs-title">History</h2>')
        past = gr.HTML("", elem_id="history", js_on_load=_CARDS)

        form = dict(
            zip(
                FIELDS,
                (
                    *(prompt, negative, frames, height, width, steps, seed, fps),
                    *(shift, guidance, true_cfg, recipe, compare),
                ),
                strict=True,
            )
        )

        def ask(*values: object) -> str:
            return html.refusal(desk.generate(dict(zip(FIELDS, values, strict=True))))

        def look(chosen: object, last: object, parts: object) -> list[Any]:
            view, finished = desk.view(str(chosen), str(last))
            known = parts if isinstance(parts, tuple) else ("", "", "")
            shown = [
                gr.skip() if before == now else text
                for before, now, text in zip(
                    known, view.parts, (view.status, view.result, view.history), strict=True
                )
            ]
            return [
                *shown,
                gr.update(interactive=not view.busy),
                gr.update(interactive=view.busy),
                view.chosen,
                finished,
                view.parts,
            ]

        def pick(event: gr.EventData) -> list[Any]:
            name = getattr(event, "id", "")
            values = desk.settings_of(name)
            if values is None:
                return [gr.skip()] * (1 + len(form))
            again = getattr(event, "action", "") == "again"
            return [name, *(values[field] if again else gr.skip() for field in form)]

        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        seen = [chosen, last, parts]
        looks = {"fn": look, "inputs": seen, "outputs": [status, result, past, generate, cancel, *seen], **quiet}  # fmt: skip
        gr.on(
            [generate.click, prompt.submit],
            ask,
            list(form.values()),
            refused,
            **quiet,
        ).then(**looks)
        cancel.click(desk.cancel, **quiet).then(**looks)
        past.click(pick, None, [chosen, *form.values()], **quiet).then(**looks)
        gr.Timer(_EVERY).tick(**looks)
        page.load(**looks)
    return page
