"""Text of others in HTML, LaTeX, Markdown, terminals, plots and cells: what the target reads is the text itself."""

import csv
import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.cbook import is_math_text
from rich.console import Console
from rich.table import Table

from umamba.io import escape

NAMES = (
    *("liver", "NA", "001", "1e3", "a,b", 'a "b"', "a'b", "'=x", "''", "=1+1", "+1", "-1", "@SUM(A1)", "\t=1"),
    *("<script>alert(1)</script>", "a&amp;b", "a|b", "*bold*", "_x_", "`code`", "[red]x[/red]", "[/x]", ":smile:"),
    *("$x$", "$\\frac$", "a\\$b$", "50%", "#1", "x~y^z{}", "\\input{/etc/passwd}", "~~a~~", "![x](http://y)"),
    *("caf\u00e9", "cafe\u0301", "\u809d\u810f", "two words"),
)


class Page(HTMLParser):
    """Collects the text of a page, the tags, and the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag and its id."""
        self.tags.append(tag)
        self.ids += [str(value) for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        """Append text."""
        self.text += data


@pytest.mark.parametrize("name", [name for name in NAMES if "\t" not in name])
def test_a_browser_shows_the_name_itself(name: str) -> None:
    page = Page()
    page.feed(f'<p id="{escape.html(name)}">{escape.html(name)}</p>')
    page.close()
    assert (page.text, page.tags, page.ids) == (name, ["p"], [name])


def test_ids_differ_as_their_names_do_and_need_no_escape() -> None:
    ids = [escape.anchor("cases", name) for name in NAMES]
    assert len(set(ids)) == len(NAMES)
    assert all(set(one) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") for one in ids)
    assert escape.anchor("a", "b-c") != escape.anchor("a-b", "c")


@pytest.mark.parametrize("name", NAMES)
def test_a_terminal_table_shows_the_name_itself(name: str) -> None:
    table = Table("label")
    table.add_row(escape.rich_text(name))
    stream = io.StringIO()
    Console(file=stream, width=120).print(table)
    assert escape.printable(name) in stream.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_plot_holds_no_formula(name: str) -> None:
    shown = escape.mathtext(name)
    assert not is_math_text(shown)
    assert shown.replace(r"\$", "$") == escape.printable(name)  # what Matplotlib draws of text without a formula


@pytest.mark.parametrize("name", NAMES)
def test_latex_holds_no_command_of_the_name(name: str) -> None:
    shown = escape.latex(name)
    for written, char in (
        *((r"\textbackslash{}", "\0"), (r"\textasciicircum{}", "^"), (r"\textasciitilde{}", "~")),
        *((r"\textless{}", "<"), (r"\textgreater{}", ">"), (r"\textbar{}", "|"), (r"\textquotedbl{}", '"')),
    ):
        shown = shown.replace(written, char)
    for char in "{}$&#_%":
        shown = shown.replace(f"\\{char}", char)
    assert "\\" not in shown
    assert shown.replace("\0", "\\") == escape.printable(name)


def test_markdown_by_hand() -> None:
    assert escape.markdown("a|b") == r"a\|b"
    assert escape.markdown("<img src=x>") == "&lt;img src=x&gt;"
    assert escape.markdown("![x](http://y)") == r"!\[x\](http://y)"
    assert escape.markdown("# x\n# y") == r"\# x\\n\# y"


def test_no_target_gets_a_character_that_controls_it() -> None:
    hostile = "a\x1b[2J\r\nb\u202ec\u2028d\x9b"
    for write in (
        escape.html,
        escape.latex,
        escape.markdown,
        escape.mathtext,
        lambda text: escape.rich_text(text).plain,
    ):
        assert all(char.isprintable() for char in write(hostile))
        assert "\u202e" not in write(hostile)


def test_cells_come_back_and_none_begins_a_formula(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([escape.to_cell(name)] for name in NAMES)
    with path.open(newline="", encoding="utf-8") as file:
        cells = [row[0] for row in csv.reader(file)]
    assert [escape.from_cell(cell) for cell in cells] == list(NAMES)
    assert not [cell for cell in cells if cell[:1] in "=+-@\t\r\n"]
    assert cells[0] == "liver"
