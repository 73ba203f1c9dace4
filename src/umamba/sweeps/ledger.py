"""How far each run of a study is, by the files of its run folder alone.

`run.json` and `metrics.csv` are training's; `task.json` is written by the process that runs a training as a job (see
`task.py`), which touches it while it lives. No scheduler is asked, so that any machine that sees the files can tell.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from umamba.io import UserError, read_json
from umamba.records import RunFolder
from umamba.records.tables import main_score, read_metrics, read_scores, seconds_per_epoch

State = Literal["pending", "running", "failed", "done"]
# Without a sign of life for this long, and for three epochs, a run counts as dead.
_SILENCE_S = 600.0


@dataclass(frozen=True)
class PlannedRun:
    """One training of a study.

    Attributes:
        overrides: what follows `python train.py`.
        folder: its run folder.
        dataset: which benchmark, as in published.csv.
        method: which network, as in published.csv; variants have names of their own.
        fold: 0 to 4, or all.
        seed: the seed.
        max_epochs: epochs of the whole training.
        batches: training and validation batches of an epoch.
        preparation: equal for runs that need the same preprocessed cases.
    """

    overrides: tuple[str, ...]
    folder: RunFolder
    dataset: str
    method: str
    fold: int | str
    seed: int
    max_epochs: int
    batches: int
    preparation: str


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Attributes:
        run: the run.
        state: pending (nothing runs it: not begun, or stopped and to be continued), running, failed, or done.
        epochs: completed epochs.
        eta_s: seconds until its last epoch, None if unknown.
        score: mean over cases of the mean over labels, NaN without one.
        reason: why it failed, or what it waits for.
    """

    run: PlannedRun
    state: State
    epochs: int = 0
    eta_s: float | None = None
    score: float = math.nan
    reason: str = ""


def run_state(run: PlannedRun, now: float | None = None) -> RunState:
    """Return how far a run is; `now` is a time in seconds since the epoch, None for this moment."""
    now = time.time() if now is None else now
    status, task = _json(run.folder.status_file), _json(run.folder.task_file)
    rows = read_metrics(run.folder.metrics)
    epochs = len(rows)
    if status.get("state") == "finished" and status.get("max_epochs", 0) >= run.max_epochs:
        return RunState(run, "done", epochs, 0.0, main_score(read_scores(run.folder.scores)))
    epoch_s = seconds_per_epoch(rows, run.batches)
    if not status and not task:
        return RunState(run, "pending")
    if task.get("state") == "failed":
        return RunState(run, "failed", epochs, reason=str(task.get("reason", "")))
    if task.get("state") == "stopped":
        return RunState(run, "pending", epochs, reason=str(task.get("reason", "")))
    if status.get("state") == "finished":
        return RunState(run, "pending", epochs, reason=f"trained for {status.get('max_epochs')} epochs only")
    silence = now - _last_sign(run.folder)
    if silence > max(_SILENCE_S, 3 * (epoch_s or 0.0)):
        return RunState(run, "failed", epochs, reason=f"no sign of life for {duration(silence)}; killed?")
    eta = None if epoch_s is None else epoch_s * max(0, run.max_epochs - epochs)
    return RunState(run, "running", epochs, eta, reason=str(status.get("state", "starting")))


def left_to_do(states: Sequence[RunState]) -> list[PlannedRun]:
    """Return the runs that nobody does and that are not done: pending and failed ones."""
    return [state.run for state in states if state.state in ("pending", "failed")]


def state_table(states: Sequence[RunState], title: str) -> Table:
    """Return the table of a study's runs, and how many are in which state."""
    counts = {
        state: sum(entry.state == state for entry in states) for state in ("done", "running", "pending", "failed")
    }
    table = Table(title=title, caption=", ".join(f"{count} {state}" for state, count in counts.items()))
    for column in ("run", "fold", "seed", "state", "epoch", "left", "score", "remark"):
        table.add_column(column, overflow="fold")
    for entry in states:
        run = entry.run
        table.add_row(
            f"{run.dataset} {run.method}",
            str(run.fold),
            str(run.seed),
            entry.state,
            f"{entry.epochs}/{run.max_epochs}",
            duration(entry.eta_s) if entry.state == "running" and entry.eta_s is not None else "",
            "" if math.isnan(entry.score) else f"{entry.score:.4f}",
            entry.reason,
        )
    return table


def duration(seconds: float) -> str:
    """Return seconds in the two largest of days, hours, minutes and seconds."""
    whole = max(0, round(seconds))
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path) if path.exists() else {}
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def _last_sign(folder: RunFolder) -> float:
    files = (folder.status_file, folder.metrics, folder.task_file, folder.last)
    return max(file.stat().st_mtime for file in files if file.exists())
