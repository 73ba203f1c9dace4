"""The state of each run of a study, read only from the files of its run folder.

Training writes `run.json` and `metrics.csv`. The process that runs a training as a job (see `task.py`) writes
`task.json` and updates its time of modification. No scheduler is asked, so any machine that has the files can tell.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from umamba.io import UserError, read_json
from umamba.io.escape import rich_text
from umamba.records import RunFolder
from umamba.records.identity import identity_differences
from umamba.records.tables import main_score, read_metrics, read_scores, seconds_per_epoch

State = Literal["pending", "running", "failed", "done"]
# A run counts as killed if its files are unchanged for this many seconds and for three epochs.
_SILENCE_S = 600.0
# The record of a job that ended is written after all other files; clocks of file systems are that exact.
_WRITING_S = 2.0


@dataclass(frozen=True)
class PlannedRun:
    """One training of a study.

    Attributes:
        overrides: the arguments of `umamba train`.
        folder: its run folder.
        dataset: the benchmark, named as in published.csv.
        method: the network, named as in published.csv; a variant has a name of its own.
        fold: 0 to 4, or all.
        seed: the seed.
        max_epochs: epochs of the whole training.
        batches: training and validation batches of an epoch.
        preparation: a hash that is equal for runs with the same preprocessed cases.
        learnt: the settings that change what is learnt; a folder with other ones does not hold this run.
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
    learnt: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunState:
    """State of a run.

    Attributes:
        run: the run.
        state: pending (not begun, or stopped and able to continue), running, failed, or done.
        epochs: completed epochs.
        eta_s: estimated seconds until the end of the last epoch; None if unknown.
        score: mean over cases of the mean over labels; NaN if there are no scores.
        reason: why it failed or was stopped, or what a running one does.
    """

    run: PlannedRun
    state: State
    epochs: int = 0
    eta_s: float | None = None
    score: float = math.nan
    reason: str = ""


def run_state(run: PlannedRun, now: float | None = None) -> RunState:
    """Return the state of a run.

    Args:
        run: the run.
        now: Unix time in seconds; None: the current time.
    """
    now = time.time() if now is None else now
    task = _json(run.folder.task_file)
    rows = read_metrics(run.folder.metrics)
    epochs = len(rows)
    try:
        status = run.folder.status()
    except UserError as error:
        return RunState(run, "failed", epochs, reason=str(error))
    trained = status.get("state") == "finished" or run.folder.saved()
    other = identity_differences(status.get("identity") or {}, run.learnt) if trained else []
    if other:
        return RunState(run, "failed", epochs, reason=f"its folder holds another run: {'; '.join(other)}")
    if status.get("state") == "finished" and (status.get("max_epochs") or 0) >= run.max_epochs:
        try:
            return RunState(run, "done", epochs, 0.0, main_score(read_scores(run.folder.scores)))
        except UserError as error:
            return RunState(run, "failed", epochs, reason=str(error))
    budget = status.get("budget") or {}  # of the time; it decides the length of the epochs
    batches = sum(int(budget.get(name, 0)) for name in ("iterations", "val_iterations")) or run.batches
    epoch_s = seconds_per_epoch(rows, batches)
    if not status and not task:
        return RunState(run, "pending")
    if task.get("state") in ("failed", "stopped") and _is_last(run.folder):
        ended: State = "failed" if task["state"] == "failed" else "pending"
        return RunState(run, ended, epochs, reason=str(task.get("reason", "")))
    if status.get("state") == "finished":
        return RunState(run, "pending", epochs, reason=f"trained for only {status.get('max_epochs')} epochs")
    silence = now - _last_change(run.folder)
    if silence > max(_SILENCE_S, 3 * (epoch_s or 0.0)):
        return RunState(run, "failed", epochs, reason=f"no change of its files for {duration(silence)}; killed?")
    eta = None if epoch_s is None else epoch_s * max(0, run.max_epochs - epochs)
    if budget:  # its epochs are not counted in advance
        used = float(rows[-1].get("time/used_s") or 0.0) if rows else 0.0
        eta = max(0.0, float(budget.get("seconds", 0.0)) - used)
    return RunState(run, "running", epochs, eta, reason=str(status.get("state", "starting")))


def left_to_do(states: Sequence[RunState]) -> list[PlannedRun]:
    """Return the runs that are pending or failed.

    Args:
        states: states of all runs.
    """
    return [state.run for state in states if state.state in ("pending", "failed")]


def state_table(states: Sequence[RunState], title: str) -> Table:
    """Return the table of a study's runs, with the number of runs in each state as its caption.

    Args:
        states: states of the runs, one row each.
        title: title of the table.
    """
    counts = {
        state: sum(entry.state == state for entry in states) for state in ("done", "running", "pending", "failed")
    }
    table = Table(title=rich_text(title), caption=", ".join(f"{count} {state}" for state, count in counts.items()))
    for column in ("run", "fold", "seed", "state", "epoch", "left", "test score", "remark"):
        table.add_column(column, overflow="fold")
    for entry in states:
        run = entry.run
        table.add_row(
            rich_text(f"{run.dataset} {run.method}"),
            str(run.fold),
            str(run.seed),
            entry.state,
            f"{entry.epochs}" if run.learnt.get("budget") else f"{entry.epochs}/{run.max_epochs}",
            duration(entry.eta_s) if entry.state == "running" and entry.eta_s is not None else "",
            "" if math.isnan(entry.score) else f"{entry.score:.4f}",
            rich_text(entry.reason),
        )
    return table


def duration(seconds: float) -> str:
    """Return a duration as text in the two largest units that it needs.

    Args:
        seconds: the duration; negative ones count as 0.

    >>> duration(3700), duration(59.6)
    ('1 h 1 min', '1 min 0 s')
    """
    whole = max(0, round(seconds))
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])


def _json(path: Path) -> dict[str, Any]:
    """Return the content of a file; empty if it does not exist or cannot be read."""
    try:
        found = read_json(path) if path.exists() else {}
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def _last_change(folder: RunFolder) -> float:
    """Return the Unix time at which a file of the run last changed."""
    return max(map(_changed, (folder.status_file, folder.metrics, folder.task_file, folder.last)))


def _is_last(folder: RunFolder) -> bool:
    """Return whether the job's record is what was written last; else the run was continued without a job."""
    return _changed(folder.task_file) + _WRITING_S >= _last_change(folder)


def _changed(file: Path) -> float:
    """Return the Unix time at which a file last changed; 0: it does not exist."""
    return file.stat().st_mtime if file.exists() else 0.0
