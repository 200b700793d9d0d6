"""What long work says of itself: one reading for terminal, log and page, in units that people read."""

import logging

import pytest

from qsjax.progress import Progress, Reading, listening
from qsjax.units import shown_bytes, shown_rate, shown_seconds


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1 kB"),
        (903_900, "904 kB"),
        (999_600, "1 MB"),
        (82_710_000, "82.7 MB"),
        (25_600_000_000, "25.6 GB"),
        (3e21, "3000 EB"),
    ],
)
def test_bytes_have_three_figures_and_a_unit(count, text):
    assert shown_bytes(count) == text


def test_rates_and_durations():
    assert shown_rate(903_900, "B") == "904 kB/s"
    assert shown_rate(12.345, "step") == "12.3 step/s"
    assert shown_rate(12_345.6, "tile") == "12346 tile/s"
    assert shown_rate(1 / 8.1, "step") == "8.1 s/step"
    texts = ["0 s", "59 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]
    assert [shown_seconds(seconds) for seconds in (0.2, 59.4, 59.6, 200, 7_500)] == texts


def test_a_log_has_a_line_a_tenth_and_who_listens_hears_all(caplog):
    heard: list[Reading] = []
    caplog.set_level(logging.INFO, logger="qsjax.progress")
    logging.getLogger("qsjax").propagate = True
    with listening(heard.append), Progress(20, "copy", unit="B", initial=10) as bar:
        for number in range(10):
            bar.advance(loss=number)
    with Progress(20, "unheard", enabled=False) as bar:
        bar.advance(20)
    assert [reading.done for reading in heard] == list(range(11, 21))
    assert {reading.total for reading in heard} == {20}
    assert all(reading.rate > 0 for reading in heard)
    assert heard[-1].seconds_left == 0
    assert heard[-1].figures == {"loss": 9}
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(" %")[0] for line in said] == [f"copy: {n}" for n in (60, 70, 80, 90, 100)]
    assert said[-1].endswith("B/s, 0 s left, loss 9)")
    assert "e+" not in "".join(said)
