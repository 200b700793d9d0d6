"""Numbers as people read them: bytes, rates and durations, with three figures and a unit."""

_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def shown_bytes(count: float | int) -> str:
    """A number of bytes, as "904 kB"; a kB is 1000 of them."""
    exponent, value = 0, float(count)
    while abs(value) >= 999.5 and exponent < len(_PREFIXES) - 1:
        exponent, value = exponent + 1, value / 1000
    return f"{_plain(value)} {_PREFIXES[exponent]}B"


def shown_rate(rate: float | int, unit: str) -> str:
    """Units a second, as "904 kB/s" or "12.3 step/s"; of less than one a second the reverse, "8.1 s/step".

    Args:
        rate: units a second; above 0.
        unit: name of one, "B" for bytes.
    """
    if unit == "B":
        return f"{shown_bytes(rate)}/s"
    if rate < 1:
        return f"{_plain(1 / max(rate, 1e-9))} s/{unit}"
    return f"{_plain(rate)} {unit}/s"


def shown_seconds(seconds: float | int) -> str:
    """A duration, as "42 s", "3 min 20 s" or "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _plain(value: float) -> str:
    """Three figures without an exponent."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
