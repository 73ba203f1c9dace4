"""What a report keeps of each run so that its numbers can be checked without the run folders: curves and records."""

from pathlib import Path
from typing import Any

import pandas

from umamba.io import write_json
from umamba.io.tabular import write_table
from umamba.reporting.results import Results

_KEPT = ("state", "max_epochs", "parameters", "step_flops", "scoring", "identity", "provenance")
# Overrides that say where files are, not what is learnt.
_PLACES = ("paths.", "dataset.root=")


def write_curves(path: Path, results: Results) -> None:
    """Write the curves of all runs as one table: metrics.csv of each run behind its dataset, method, fold and seed.

    Args:
        path: the CSV file.
        results: the results of the study.
    """
    parts = []
    for state in results.states:
        curve, run = results.curves.get(state.run.folder), state.run
        if curve is not None:
            keys = {"dataset": run.dataset, "method": run.method, "fold": str(run.fold), "seed": run.seed}
            parts.append(pandas.concat([pandas.DataFrame(keys, index=curve.index), curve], axis="columns"))
    write_table(path, pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame({"dataset": []}))


def write_records(path: Path, results: Results) -> None:
    """Write what is compared, and of each run how it was started, what decides what it learns, and its versions.

    Args:
        path: the JSON file.
        results: the results of the study.
    """
    records: list[dict[str, Any]] = []
    for state in results.states:
        run, status = state.run, state.run.folder.readable_status()
        records.append(
            {
                "dataset": run.dataset,
                "method": run.method,
                "fold": run.fold,
                "seed": run.seed,
                "overrides": [text for text in run.overrides if not text.lstrip("+").startswith(_PLACES)],
                "epochs": state.epochs,
                **{name: status[name] for name in _KEPT if name in status},
            }
        )
    compared = {"comparisons": results.comparisons} if results.comparisons else {}
    write_json(path, {"study": results.name, "question": results.question, **compared, "runs": records})
