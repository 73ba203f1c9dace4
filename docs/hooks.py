"""Add pages to the site: those beside docs/ (studies, measurements, SLURM, changelog ...), and the page of settings.

Links are written so that they also work on GitHub.
"""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).resolve().parent))
from settings_page import settings_page

PROJECT = Path(__file__).resolve().parents[1]
SETTINGS = "reference/settings.md"
BESIDE = (
    *("CONTRIBUTING.md", "CHANGELOG.md", "constraints.txt", "slurm/README.md"),
    *("experiments/**/*.*", "benchmarks/results/*.md"),
)
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


def paths_beside() -> set[str]:
    """Return the paths of all files of `BESIDE`, relative to the repository."""
    return {path.relative_to(PROJECT).as_posix() for pattern in BESIDE for path in PROJECT.glob(pattern)}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of all settings, and the files of `BESIDE` under their paths in the repository."""
    files.append(File.generated(config, SETTINGS, content=settings_page()))
    for path in sorted(paths_beside()):
        linked = path.endswith("/claims.md")  # from the study's page
        inclusion = InclusionLevel.NOT_IN_NAV if linked else InclusionLevel.UNDEFINED
        files.append(File.generated(config, path, abs_src_path=str(PROJECT / path), inclusion=inclusion))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links between files of the repository to links between pages of the site."""
    beside = paths_beside()
    own = page.file.src_uri
    folder = posixpath.dirname(own if own in beside else posixpath.join("docs", own))

    def site_link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1])).removeprefix("docs/")
        readme = posixpath.join(target, "README.md")
        return "](" + posixpath.relpath(readme if readme in beside else target, posixpath.dirname(own) or ".")

    return _LINK.sub(site_link, markdown)
