"""Record which versions, system and git revision made a result."""

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "lightning", "torchio", "monai", "numpy", "scipy", "SimpleITK", "numba", "mamba-ssm", "blosc2")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    # Without the lock that `git status` takes to store what it found: it would stay if the time limit ends git.
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _git_state() -> dict[str, Any] | None:
    """Return revision and dirty flag of the checkout that holds this package; None for an installed wheel."""
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    revision, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return None if revision is None else {"revision": revision, "dirty": bool(status)}


def provenance() -> dict[str, Any]:
    """Return package versions, Python, system and git revision as JSON-able values.

    The versions come from package metadata, so no package is imported. The version of an absent package is None, and
    `git` is None without git or outside a repository. Nothing names the machine, the user or a folder, because the
    record stands in every checkpoint, and checkpoints are shared.
    """
    return {
        "umamba": _version("umamba"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": package_versions(_PACKAGES),
        "git": _git_state(),
    }


def package_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Return the versions of packages; None for those that are absent.

    Args:
        packages: their names.
    """
    return {package: _version(package) for package in packages}


@cache
def source_digest() -> str:
    """Return the SHA-256 of this package's Python files, which tells code apart without git."""
    root = Path(__file__).resolve().parents[1]
    hashed = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        content = path.read_bytes()
        hashed.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return hashed.hexdigest()
