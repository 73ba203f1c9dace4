"""The folder of a run: a function of what the run is, never of the clock.

    runs/<experiment>/<configuration>/fold_<k>/seed_<s>/
        config.yaml plan.json run.json metrics.csv progress.png checkpoints/ panels/
        validation/ validation.csv (of the fold) predictions/ scores.csv overlays/ (of the test images)

`run.json` says how far the run is; the same command reads it and continues, or leaves a finished run alone.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from umamba.io import UserError, provenance, read_json, write_json
from umamba.training.checkpoints import BEST, LAST

# What a checkpoint's weights depend on: a change under the same run name is refused.
FIXED = ("architecture", "plan", "configuration", "labels", "channel_names", "fingerprint_hash", "pretrained")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run.

    Args:
        path: the folder itself.
    """

    path: Path

    @property
    def last(self) -> Path:
        """The checkpoint of the last completed epoch."""
        return self.path / "checkpoints" / LAST

    @property
    def best(self) -> Path:
        """The checkpoint with the highest smoothed patch Dice."""
        return self.path / "checkpoints" / BEST

    @property
    def validation(self) -> Path:
        """The segmentations of the fold's validation cases."""
        return self.path / "validation"

    @property
    def validation_scores(self) -> Path:
        """Their scores."""
        return self.path / "validation.csv"

    @property
    def status_file(self) -> Path:
        """run.json."""
        return self.path / "run.json"

    def status(self) -> dict[str, Any]:
        """Return run.json, empty if the run has not begun."""
        return read_json(self.status_file) if self.status_file.exists() else {}

    def set_status(self, **values: Any) -> None:
        """Merge values into run.json."""
        write_json(self.status_file, {**self.status(), **values})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            UserError: another process trains this very run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"{self.path} is in use by another process. Wait for it, stop it, or choose another fold, seed or name."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def clear(self) -> None:
        """Delete everything but the lock."""
        for entry in self.path.iterdir():
            if entry.name == ".lock":
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def is_finished(self, max_epochs: int, max_seconds: float | None) -> bool:
        """Return whether the run is trained, predicted and scored, and the command asks for no more of it."""
        status = self.status()
        if status.get("state") != "finished" or status.get("max_epochs", 0) < max_epochs:
            return False
        former = status.get("max_seconds")
        return former is None or (max_seconds is not None and max_seconds <= former)

    def begin(self, record: Mapping[str, Any], max_epochs: int, max_seconds: float | None) -> None:
        """Write run.json for a run that starts or goes on, after checking that it is the same run.

        Raises:
            UserError: the folder holds a run of another architecture, plan or dataset.
        """
        before = self.status().get("identity", {})
        identity = {name: record[name] for name in FIXED}
        changed = [name for name in FIXED if before and differs(before.get(name), identity[name])]
        if changed:
            details = "\n".join(
                f"  {line}" for name in changed for line in differences(name, before.get(name), identity[name])
            )
            raise UserError(
                f"{self.path} holds a run that differs from this command in:\n{details}\n"
                "Give the new run a name of its own (name=...), or begin afresh with restart=true."
            )
        self.set_status(
            state="training",
            identity=identity,
            max_epochs=max_epochs,
            max_seconds=max_seconds,
            provenance=provenance(),
        )


def differs(before: Any, now: Any) -> bool:
    """Compare as JSON does: tuples are lists, and integers are their floats."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return before.keys() != now.keys() or any(differs(before[key], now[key]) for key in before)
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        return len(before) != len(now) or any(differs(a, b) for a, b in zip(before, now, strict=True))
    return bool(before != now)


def differences(name: str, before: Any, now: Any) -> list[str]:
    """Return one line for each value that differs, by its dotted name."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = list(dict.fromkeys([*before, *now]))
        return [line for key in keys for line in differences(f"{name}.{key}", before.get(key), now.get(key))]
    return [f"{name}: was {before}, is {now}"] if differs(before, now) else []
