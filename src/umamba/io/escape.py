r"""Write text of others (names of labels, cases, datasets) into HTML, LaTeX, Markdown, terminals, plots and tables.

Such text may contain any character. Each function returns the form in which its target shows the text literally and
executes nothing. All writers use these functions, so that a target has one rule. In HTML, LaTeX, Markdown, terminals
and plots, characters that cannot be seen (controls, line breaks, changes of the writing direction) become visible
escapes, such as \x1b. A cell of a table keeps them, because `from_cell` returns the text as it was.
"""

import html as _html
import re

from rich.text import Text

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}
_MARKDOWN = re.compile(r"([\\`*_\[\]|~$#]|^[-+]|(?<=^\d)[.)])")
# Controls; line and paragraph separators; marks that change the direction of the text around them; surrogates.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# A spreadsheet takes a cell that begins with one of these for a formula, even in quotes.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_QUOTE = "'"
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/:'\"]+/)+")  # of an absolute path, with the slash behind them


def printable(text: str) -> str:
    r"""Return text with a visible escape for each character that cannot be seen.

    >>> print(printable("liver\x1b[2J\n"))
    liver\x1b[2J\n
    """
    return _UNSEEN.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def printable_lines(text: str) -> str:
    r"""Return text as `printable` does, but keep line breaks and tabs.

    >>> printable_lines("a\tb\nc\x1b[2J")
    'a\tb\nc\\x1b[2J'
    """
    return "".join(part if part in "\n\t" else printable(part) for part in re.split("([\n\t])", text))


def html(text: str) -> str:
    """Return text for the content of an HTML element or for an attribute in quotes.

    >>> html('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return _html.escape(printable(text))


def without_folders(text: str) -> str:
    """Return a message in which each absolute path is only its last part, for files that are given away.

    >>> without_folders("exit code 2: /data/runs/a/run.json: damaged; see runs/a and https://example.org/b")
    'exit code 2: run.json: damaged; see runs/a and https://example.org/b'
    """
    return _FOLDERS.sub("", text)


def anchor(*parts: str) -> str:
    """Return an id for an HTML element, which is also valid after the # of a link; other parts give another id.

    Args:
        parts: the texts that the id stands for; ASCII letters, digits and underscores stay readable.

    >>> anchor("cases", "liver & co")
    'cases-liver.20..26..20.co'
    """
    return "-".join(
        "".join(char if char.isascii() and (char.isalnum() or char == "_") else f".{ord(char):x}." for char in part)
        for part in parts
    )


def latex(text: str) -> str:
    r"""Return text for LaTeX outside of mathematics.

    >>> print(latex("50% of $x_1$"))
    50\% of \$x\_1\$
    """
    return "".join(_LATEX.get(char, char) for char in printable(text))


def markdown(text: str) -> str:
    r"""Return text for a line or a table cell of Markdown; HTML in the text is shown, too.

    >>> print(markdown("a|b <i>"))
    a\|b &lt;i&gt;
    """
    return _MARKDOWN.sub(r"\\\1", _html.escape(printable(text), quote=False))


def mathtext(text: str) -> str:
    r"""Return text for a title, tick or legend of Matplotlib, which takes what stands between two $ for a formula.

    >>> print(mathtext("$x$"))
    \$x\$
    """
    return printable(text).replace("$", r"\$")


def rich_text(text: str) -> Text:
    """Return text for a cell or a title of a rich table, in which [brackets] and :colons: are no markup.

    >>> str(rich_text("[/red] :smile:"))
    '[/red] :smile:'
    """
    return Text(printable(text))


def to_cell(text: str) -> str:
    """Return text for a cell of a CSV file; a quote before it keeps spreadsheets from running it as a formula.

    >>> to_cell("=1+1"), to_cell("liver")
    ("'=1+1", 'liver')
    """
    return _QUOTE + text if text.startswith((*_FORMULA, _QUOTE)) else text


def from_cell(text: str) -> str:
    """Return the text that `to_cell` was given.

    >>> from_cell("'=1+1"), from_cell("liver"), from_cell(to_cell("'quoted'"))
    ('=1+1', 'liver', "'quoted'")
    """
    return text[1:] if text.startswith(_QUOTE) and text[1:].startswith((*_FORMULA, _QUOTE)) else text
