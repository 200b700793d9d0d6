"""What `qsjax sample` says of a video that it has written."""

import argparse
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from qsjax.settings import DENSE, REFRESH

if TYPE_CHECKING:
    from qsjax.generation import Result


def describe(args: argparse.Namespace, result: "Result", video: np.ndarray) -> dict[str, Any]:
    """The report of a run, ready for JSON, but for the time of all."""
    report = {
        "out": str(args.out),
        "frames": video.shape[0],
        "height": video.shape[1],
        "width": video.shape[2],
        "seed": result.seed,
        "steps": result.settings.steps,
        "steps_left_out": result.skipped,
        "seconds": dict(result.timings),
    }
    if result.heads is not None:
        report["attention"] = result.heads.plain()
        refreshes = [step for step, kind in enumerate(result.kinds) if kind == REFRESH]
        report["refreshes"], report["dense_steps"] = refreshes, result.kinds.count(DENSE)
    return report


def print_report(args: argparse.Namespace, report: dict[str, Any]) -> None:
    """Print it as JSON or for people."""
    if args.json:
        print(json.dumps(report, indent=1))
        return
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report["seconds"].items())
    size = (
        f"{report['frames']}x{report['height']}x{report['width']}, " if "frames" in report else ""
    )
    skipped = report.get("steps_left_out", 0)
    steps = f"{skipped} of {report['steps']} steps left out, " if skipped else ""
    if (heads := report.get("attention")) is not None:
        least = heads["least"]
        print(
            f"sparse steps computed {100 * heads['density']:.1f} % of the pairs, which hold {100 * heads['recall']:.1f} % of the"
            f" attention mass; least in head {least['head']} of layer {least['layer']}, {100 * least['recall']:.1f} %"
        )
        refreshes = ", ".join(map(str, report["refreshes"]))
        print(f"{report['dense_steps']} steps were dense; refreshes were steps {refreshes}")
    print(f"wrote {report['out']} ({size}{steps}{stages})")
    if (compared := report.get("compare")) is not None:
        frames = compared["psnr_by_frame"]
        like = "" if compared["ssim"] is None else f", SSIM {compared['ssim']:.3f}"
        print(
            f"against {compared['with']} in full precision: PSNR {compared['psnr']:.1f} dB,"
            f" of frames {min(frames):.1f} to {max(frames):.1f}{like}"
        )
        for path in compared["files"]:
            print(f"wrote {path}")
    if "preview" in report:
        print(f"wrote {report['preview']}")
