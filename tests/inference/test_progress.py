"""The progress of a prediction: one line, the time left from the recent speed, a line a minute in a log file."""

import io
import logging

import pytest
from rich.console import Console

from umamba.inference.progress import CaseProgress


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_follows_the_recent_speed() -> None:
    clock = Clock()
    progress = CaseProgress(100, False, Console(file=io.StringIO()), clock)
    for _ in range(50):  # 50 small images, 1 s each
        clock.now += 1
        progress.case()
    assert progress.seconds_left == pytest.approx(50, abs=1)
    for done in range(1, 31):  # a large one: 30 tiles, 20 s each
        clock.now += 20
        progress.tiles(done, 30)
    assert progress.seconds_left == pytest.approx(49 * 600, rel=0.05)


def test_a_bar_has_one_line_of_80_columns_and_leaves_none() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    with CaseProgress(1000, True, console) as progress:
        progress.tiles(1234, 12345)
        progress._progress.refresh()
        lines = console.render_lines(progress._progress.get_renderable())
        assert len(lines) == 1
        text = "".join(segment.text for segment in lines[0])
        assert "Predicting 1 of 1000" in text
        assert "tile 1234 of 12345" in text
        progress.case()
    assert file.getvalue().count("\n") <= 1
    assert file.getvalue().endswith("\x1b[2K")  # the line is erased


def test_a_log_file_gets_a_line_at_once_and_one_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "umamba")
    clock, file = Clock(), io.StringIO()
    with CaseProgress(3, True, Console(file=file), clock) as progress:
        assert [record.getMessage() for record in caplog.records] == ["Predicting 3 images"]
        for case in range(3):
            for tile in range(1, 11):
                clock.now += 10
                progress.tiles(tile, 10)
            progress.case()
            assert case < 3
    lines = [record.getMessage() for record in caplog.records][1:]
    assert lines[0] == "Predicting: 0 of 3 images done, tile 6 of 10 of the next, 0:04:00 left"
    assert len(lines) == 5
    assert file.getvalue() == ""
