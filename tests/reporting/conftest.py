"""Readers of a report's page that its tests share: its numbers and links, and what a browser makes of it."""

import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest


class Cells(HTMLParser):
    """Collects the cells that carry a number, and every address and source of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: dict[tuple[str, ...], str] = {}
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.key: tuple[str, ...] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a cell's key, an id, or a link."""
        found = dict(attrs)
        if tag == "td":
            names = ("data-dataset", "data-method", "data-label", "data-metric")
            self.key = tuple(str(found[name]) for name in names) if "data-dataset" in found else None
        if found.get("id"):
            self.anchors.add(str(found["id"]))
        self.links += [str(found[name]) for name in ("href", "src") if found.get(name)]
        assert tag not in ("link", "iframe")
        assert tag != "script" or not found

    def handle_data(self, data: str) -> None:
        """Append text to the cell that is open."""
        if self.key is not None:
            self.cells[self.key] = self.cells.get(self.key, "") + data + " "

    def handle_endtag(self, tag: str) -> None:
        """Close a cell."""
        if tag == "td":
            self.key = None


@pytest.fixture
def read_page() -> Callable[[str], tuple[dict[tuple[str, ...], str], set[str], list[str]]]:
    """Return a function that reads a page: its numbers by dataset, method, label and metric, its ids, its addresses."""

    def read(text: str) -> tuple[dict[tuple[str, ...], str], set[str], list[str]]:
        parser = Cells()
        parser.feed(text)
        return parser.cells, parser.anchors, parser.links

    return read


@pytest.fixture
def browser(tmp_path: Path) -> Callable[..., str]:
    """Return a function that opens an address in headless Chromium with options and returns the page's elements."""
    if shutil.which("chromium") is None:
        pytest.skip("needs Chromium")

    def elements(address: str, *options: str) -> str:
        chosen = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", *options]
        command = ["chromium", *chosen, "--dump-dom", address]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    return elements
