"""One HTML file that holds its styles, pictures and script, and loads nothing else."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from umamba.io import atomic_path, provenance
from umamba.io.escape import html


def write_document(path: Path, title: str, body: str, script: str = "") -> None:
    """Write a page in the style of reports. A browser loads nothing from elsewhere and runs no other script.

    Args:
        path: the HTML file, written atomically.
        title: the title, as plain text.
        body: HTML.
        script: JavaScript; empty: none.
    """
    style = files("umamba.reporting").joinpath("page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"; script-src 'sha256-{digest}'" if script else ""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        f"content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'{allowed}\">"
        f"<title>{html(title)}</title><style>{style}</style></head><body>{body}"
        f"{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def made_with() -> str:
    """Return a note on the versions that made a page."""
    facts = provenance()
    git = facts["git"]
    revision = "" if git is None else f", revision {git['revision'][:12]}{' with changes' if git['dirty'] else ''}"
    return f'<p class="note">Made with umamba {html(str(facts["umamba"]))}{revision}, Python {facts["python"]}.</p>'


def scrolled_table(names: Sequence[str], rows: str) -> str:
    """Return a table that scrolls sideways where the screen is narrow.

    Args:
        names: heads of the columns; reasons and remarks are sentences, which begin at the left.
        rows: HTML of the body.
    """
    kinds = [' class="words"' if name in ("reason", "remark") else "" for name in names]
    head = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in zip(names, kinds, strict=True))
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
