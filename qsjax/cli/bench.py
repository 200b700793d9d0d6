"""`qsjax bench`: measure the transformer against PyTorch."""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `qsjax bench`."""
    parser.add_argument("what", choices=("dit",), help="dit: one forward of a mid-size transformer")
    parser.add_argument(
        "--against", choices=("torch",), default="torch", help="what to compare with"
    )
    parser.add_argument("--pairs", type=int, default=7, help="alternating measurements of each")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        InputError: fewer than one pair, or torch is not installed.
    """
    from qsjax.bench.dit import against_torch
    from qsjax.errors import InputError

    if args.pairs < 1:
        raise InputError(f"--pairs {args.pairs}: at least 1 is needed")
    report = against_torch(args.pairs)
    if args.json:
        print(json.dumps(report, indent=1))
        return 0
    print(
        f"{report['tokens']} tokens, float32, {report['threads']} threads, {report['gflop']:.0f} GFLOP in the blocks,"
        f" median of {report['pairs']} alternating pairs\n"
        f"qsjax    {report['qsjax_seconds']:.3f} s  {report['qsjax_gflops']:.0f} GFLOP/s\n"
        f"diffusers {report['torch_seconds']:.3f} s  {report['torch_gflops']:.0f} GFLOP/s\n"
        f"ratio    {report['median_ratio']:.3f}  (largest difference of the outputs {report['max_difference']:.1e})"
    )
    return 0
