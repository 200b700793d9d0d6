"""`qsjax ui`: a page in the browser to play with a model."""

import argparse
import json
import threading
from pathlib import Path

from qsjax.cli.options import Options, with_config
from qsjax.cli.resident import GOODBYE, add_resident, make_maker

_TINY = (
    "a red circle moves left over a dark background",
    "a blue square moves up over dark stripes",
    "a green triangle grows over a dark gradient",
)


def add_arguments(options: Options) -> None:
    """The options of `qsjax ui`."""
    add_resident(options, port=7860)
    options.add_argument(
        "--reference",
        help="checkpoint in full precision to show videos beside (default: the model itself, if it is one)",
    )
    options.add_argument(
        "--share",
        action="store_true",
        help="open a public link too, through the servers of Gradio's makers: who has it can use the page",
    )


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C.

    Raises:
        QsjaxError: an error that the user can fix.
    """
    args = with_config(args.options, args)
    from qsjax.ui.page import import_gradio

    import_gradio()  # what is missing is said before a model is opened
    from qsjax.serving import TaskQueue
    from qsjax.ui.launch import open_page

    maker = make_maker(args, reference=args.reference, preview=1)
    with maker.folder.held("ui"):
        queue = TaskQueue(maker, limit=1, warm=maker.warm)
        try:
            close = open_page(
                maker,
                queue,
                where=_where(args, maker.pipeline.weights),
                examples=_examples(args.model),
                port=args.port,
                share=args.share,
                said=lambda address, link: _say(args, address, link),
            )
            try:
                threading.Event().wait()
            finally:
                close()
        finally:
            queue.close(GOODBYE)
    return 0


def _say(args: argparse.Namespace, address: str, link: str | None) -> None:
    if args.json:
        print(json.dumps({"address": address, "share": link, "out": str(args.out)}), flush=True)
        return
    print(f"{address} (this machine alone; videos go into {args.out}; Ctrl-C ends it)", flush=True)
    if link:
        print(f"{link} (public: who has this link can use the page)", flush=True)


def _where(args: argparse.Namespace, weights: str | None) -> str:
    name = "the bundled tiny model" if args.model == "tiny" else Path(args.model).resolve().name
    return f"{name}, {weights or 'full precision'} · videos go into {args.out}"


def _examples(model: str) -> tuple[str, ...]:
    """Prompts to click on: of the words that the tiny model knows, or general ones."""
    if model == "tiny":
        return _TINY
    from qsjax.config import preset

    return tuple(preset("captions", "general")["captions"][:3])
