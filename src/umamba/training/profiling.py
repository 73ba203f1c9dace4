"""Lightning's profilers, whose tables go into the run folder."""

from pathlib import Path
from typing import Any

from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

KINDS: dict[str, type[Any]] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def build_profiler(kind: str | None, folder: Path) -> Profiler | None:
    """Return the profiler of trainer.profiler, which writes fit-profile.txt into a folder; None: none."""
    return None if kind is None else KINDS[kind](dirpath=folder, filename="profile")
