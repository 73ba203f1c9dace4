"""What is asked of git for the record of a result."""

import subprocess
from typing import Any

import pytest

from umamba.io import versions


def test_asking_for_the_revision_leaves_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """`git status` would lock the index to store what it found; ended by the time limit, it leaves the lock behind."""
    asked: list[list[str]] = []
    run = subprocess.run

    def noting(command: list[str], **more: Any) -> Any:
        asked.append(command)
        return run(command, **more)

    monkeypatch.setattr(subprocess, "run", noting)
    versions.provenance()
    assert asked
    assert all(command[:2] == ["git", "--no-optional-locks"] for command in asked)
