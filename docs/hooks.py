"""Add pages beside docs/ to the site: studies, SLURM, contributing, changelog; links between them work here and on GitHub."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PROJECT = Path(__file__).resolve().parents[1]
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "constraints.txt", "experiments/*.*", "experiments/*/*.*", "slurm/README.md")
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of `BESIDE` under their paths in the repository."""
    for pattern in BESIDE:
        for path in sorted(PROJECT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(PROJECT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are right in the repository into links that are right in the site."""
    own = page.file.src_uri
    in_repository = own if own in _beside() else posixpath.join("docs", own)

    def site_link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository), match[1]))
        target = target.removeprefix("docs/")
        return "](" + posixpath.relpath(target, posixpath.dirname(own) or ".")

    return _LINK.sub(site_link, markdown)


def _beside() -> set[str]:
    return {path.relative_to(PROJECT).as_posix() for pattern in BESIDE for path in PROJECT.glob(pattern)}
