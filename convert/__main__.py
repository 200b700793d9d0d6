"""`python -m convert SRC DST`: PyTorch weights of HunyuanVideo into a checkpoint, and back with --export."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from qsjax.crash import refusal, report_crash
from qsjax.errors import InputError, QsjaxError, on_command_line

_PARTS = {
    "transformer": "DiT weights: a .safetensors, .gguf or .pt file, or a folder; as every PATH also of the hub, as SRC",
    "vae": "VAE weights: a .safetensors or .pt file, or a folder",
    "text_encoder": "LLaMA or LLaVA: a folder with config.json, or a .safetensors or .gguf file",
    "text_encoder_2": "CLIP: a folder with config.json, or a .safetensors file",
    "tokenizer": "LLaMA's tokenizer folder (default: beside the text encoder)",
    "tokenizer_2": "CLIP's tokenizer folder (default: beside the text encoder)",
    "config": "sizes of a DiT whose weights carry no config.json: a TOML preset or diffusers' config.json "
    "(default: HunyuanVideo 13B)",
    "vae_config": "the same for the VAE (default: HunyuanVideo's)",
    "prompt_template": 'JSON file {"template", "crop_start", "max_length"} (default: SRC/prompt_template.json, '
    "else HunyuanVideo's from the installed diffusers)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a conversion to a parser; those not given are absent from what it parses."""
    absent = argparse.SUPPRESS
    parser.add_argument(
        "source",
        metavar="SRC",
        nargs="?",
        # An optional positional cannot be absent; the empty format keeps "default: None" out of the help.
        help="diffusers folder, folder of Tencent's files, or transformer file; hf://OWNER/NAME[@REVISION][/PATH] is such a folder "
        "or file of the Hugging Face hub, of which what is needed is downloaded; with --export or --lora also a checkpoint%(default).0s",
    )
    parser.add_argument("destination", metavar="DST", type=Path, help="folder to write")
    for name, text in _PARTS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, metavar="PATH", default=absent, help=text)
    parser.add_argument(
        "--lora",
        metavar="FILE[:STRENGTH]",
        action="append",
        default=absent,
        help="merge a LoRA (.safetensors, also of the hub) into the transformer, before anything is quantized; may be repeated (default strength: 1)",
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default=absent,
        help="dtype of all stored weights (default: as in the source)",
    )
    parser.add_argument(
        "--quantize",
        metavar="METHOD-RECIPE",
        default=absent,
        help="store the transformer quantized, without calibration: rtn-w4a8 rounds to nearest, quarot-w4a8 puts Hadamard "
        "rotations in front; RECIPE is a preset (bf16, w3a8, w4a16, w4a4, w4a8, w6a6, w8a8) or a TOML file",
    )
    parser.add_argument(
        "--text-storage",
        choices=("int8",),
        default=absent,
        help="store the text encoders' linear layers in 8 bits, with a scale for each output channel (default: as in the source)",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        default=absent,
        help="how the model is sampled by default: fast-hunyuan for FastVideo's FastHunyuan, 6 steps with shift 17 (default: the "
        "source's, else HunyuanVideo's)",
    )
    flags = {
        "verify": "re-read what was written and compare it with the source; if DST is a checkpoint already, only that",
        "export": "the way back: write transformer/ and vae/ of the checkpoint SRC as safetensors for diffusers; a quantized transformer with "
        "its integers and scales, as docs/format.md says",
        "overwrite": "replace DST once the new one is whole",
        "offline": "with a model of the hub: use what was downloaded, without the network",
        "delete-source": "with a model of the hub: download one safetensors file at a time, and delete it from our cache when its tensors "
        "are written; no LoRA, no folder of yours, and no target of a link",
        "json": "print the report as JSON",
    }
    for name, text in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `python -m convert`."""
    parser = argparse.ArgumentParser(prog="python -m convert", description=__doc__)
    add_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Convert, verify or export as asked; the report goes to stdout.

    Raises:
        QsjaxError: something the caller can mend, in one sentence.
    """
    return _export(args) if args.export else _convert(args)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    logger, handler = logging.getLogger("qsjax"), logging.StreamHandler()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # A library, as Orbax, may have given the root logger a handler of its own.
    logger.propagate = False
    try:
        return run(args)
    except QsjaxError as error:
        print(f"error: {on_command_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if (reason := refusal(error)) is not None:
            print(f"error: {reason}", file=sys.stderr)
            return 2
        print(f"error: {report_crash(error)}", file=sys.stderr)
        return 1
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in _PARTS if hasattr(args, name)}


def _convert(args: argparse.Namespace) -> int:
    from convert.conversion import convert  # it brings JAX, and `--help` should not wait for it

    done = convert(
        args.source,
        args.destination,
        **_given(args),
        lora=getattr(args, "lora", ()),
        dtype=getattr(args, "dtype", None),
        quantize=getattr(args, "quantize", None),
        text_storage=getattr(args, "text_storage", None),
        preset=getattr(args, "preset", None),
        verify=args.verify,
        overwrite=args.overwrite,
        offline=args.offline,
        delete_source=args.delete_source,
    )
    print(json.dumps(done.plain(), indent=1) if args.json else done)
    return 0


def _export(args: argparse.Namespace) -> int:
    from convert.exporting import export

    if args.source is None:
        raise InputError("--export needs a checkpoint and a folder; give SRC and DST")
    surplus = [
        *_given(args),
        *(
            name
            for name in ("lora", "dtype", "quantize", "text_storage", "preset")
            if hasattr(args, name)
        ),
        *(name for name in ("verify", "offline", "delete_source") if getattr(args, name)),
    ]
    if surplus:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in surplus)
        raise InputError(f"--export writes what the checkpoint holds; run it without {named}")
    files = [
        str(path) for path in export(Path(args.source), args.destination, overwrite=args.overwrite)
    ]
    report = {"checkpoint": args.source, "files": files}
    print(json.dumps(report, indent=1) if args.json else "wrote " + "\nwrote ".join(files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
