"""What `qsjax demo` prints: its report as text, and the labels of its pictures."""


def label(way: dict) -> str:
    """Of a row in the strip: the way, the size of its weights, the attention of all its steps, and how near its videos are."""
    distance = "" if way["psnr"] is None else f", {way['psnr']:.1f} dB"
    return (
        f"{way['name']}: {way['dit_bytes'] / 1e6:.1f} MB,"
        f" {100 * way['mean_density']:.0f} % of attention{distance}"
    )


def _list(seconds: dict[str, float]) -> str:
    return ", ".join(f"{stage} {spent}" for stage, spent in seconds.items())


def _table(ways: list[dict]) -> str:
    from qsjax.evaluate.tables import markdown

    headers = [
        *("way", "PSNR, dB", "SSIM", "attention, sparse step", "attention, all steps"),
        *("transformer", "cache", "denoising"),
    ]
    rows = []
    for way in ways:
        first = way["psnr"] is None
        rows.append([
            way["name"],
            "" if first else f"{way['psnr']:.1f}",
            "" if first else f"{way['ssim']:.3f}",
            f"{100 * way['density']:.0f} %",
            f"{100 * way['mean_density']:.0f} %",
            f"{way['dit_bytes'] / 1e6:.1f} MB",
            f"{way['cache_bytes'] / 1e6:.1f} MB",
            f"{way['seconds_a_video']:.1f} s",
        ])  # fmt: skip
    return markdown(headers, rows)


def text(report: dict) -> str:
    """The report of the demo, for people."""
    parameters = ", ".join(f"{name} {count:,}" for name, count in report["parameters"].items())
    sizes, calibrated = report["dit_bytes"], report["calibration"]
    lines = [
        f"converted the bundled PyTorch files to {report['checkpoints']['float']} (parameters: {parameters})",
        f"calibrated it to {report['checkpoints']['W4A8']}: transformer {sizes['float'] / sizes['W4A8']:.2f} times smaller,"
        f" block errors {calibrated['output_error']:.2f} of round-to-nearest's",
        f"sampled {report['clips']} videos of {report['video']} in {report['steps']} steps each, in {len(report['ways'])} ways:",
        _table(report["ways"]),
        "seconds: " + _list(report["seconds"]),
        f"seconds of the last video, compiled before: {_list(report['seconds_of_last_video'])}",
        *(f"wrote {path}" for path in report["files"]),
        "The tiny model has HunyuanVideo's architecture at a three-thousandth of its size; it knows moving shapes only.",
        "At this size sparse attention saves little time; a video of 8,224 tokens took half as long (`qsjax bench sample`).",
    ]
    return "\n".join(lines)
