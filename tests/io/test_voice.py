"""Messages and progress bars appear only where the caller asks for them."""

import logging
from collections.abc import Iterator

import pytest
from rich.table import Table

from umamba.io.voice import ConsoleHandler, show_messages, showing, shown, tracked

_LOGGER = logging.getLogger("umamba")


@pytest.fixture(autouse=True)
def logger_as_before() -> Iterator[None]:
    """Restore the logger, and start without handlers."""
    before = (_LOGGER.handlers, _LOGGER.level, _LOGGER.propagate)
    _LOGGER.handlers = []
    yield
    _LOGGER.handlers, _LOGGER.level, _LOGGER.propagate = before


def test_a_library_call_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert not showing()
    assert list(tracked(iter("abc"), "Counting", 3)) == ["a", "b", "c"]
    logging.getLogger("umamba.room").info("a message")
    assert capsys.readouterr() == ("", "")


def test_messages_and_bars_appear_together(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws bars on terminals only
    with shown():
        assert showing()
        logging.getLogger("umamba.room").info("a message of %d words", 5)
        list(tracked(iter("abc"), "Counting", 3))
    assert not showing()
    said = capsys.readouterr()
    assert said.out == "a message of 5 words\n"
    assert "Counting" in said.err


def test_further_processes_of_a_run_show_no_bars() -> None:
    show_messages(logging.WARNING)
    assert not showing()
    show_messages()
    assert showing()


def test_names_in_messages_control_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("label", title="of [/b] :smile:")
    table.add_row("[/red]")
    for message, words in ((table, ()), ("case %s,\nnext\tline [/b]", ("a\x1b[2J\udcff",))):
        # Not by a logger, because pytest would keep the message, whose half character its processes cannot exchange.
        ConsoleHandler().emit(logging.makeLogRecord({"msg": message, "args": words, "levelno": logging.INFO}))
    said = capsys.readouterr()
    assert "of [/b] :smile:" in said.out
    assert "[/red]" in said.out
    assert said.out.endswith("case a\\x1b[2J\\udcff,\nnext\tline [/b]\n")
