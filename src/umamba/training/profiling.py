"""Lightning's profilers, whose tables go into the run folder."""

from pathlib import Path
from typing import Any

from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from umamba.io import UserError

KINDS: dict[str, type[Any]] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def build_profiler(kind: str | None, folder: Path) -> Profiler | None:
    """Return the profiler of trainer.profiler, which writes fit-profile.txt into a folder; None: none.

    Raises:
        UserError: there is no such profiler.
    """
    if kind is None:
        return None
    if kind not in KINDS:
        raise UserError(f"trainer.profiler={kind} is unknown. Choose null or one of {', '.join(KINDS)}.")
    return KINDS[kind](dirpath=folder, filename="profile")  # type: ignore[no-any-return]
