"""Lightning's profilers, which write their tables into the run folder."""

from pathlib import Path
from typing import Any

from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

KINDS: dict[str, type[Any]] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def build_profiler(kind: str | None, folder: Path) -> Profiler | None:
    """Return the profiler that trainer.profiler names; it writes fit-profile.txt.

    Args:
        kind: simple, advanced or pytorch; None: no profiler.
        folder: the folder of that file.
    """
    return None if kind is None else KINDS[kind](dirpath=folder, filename="profile")
