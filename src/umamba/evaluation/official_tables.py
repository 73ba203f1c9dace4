"""Scores as the tables that the evaluation scripts of the paper's code write."""

from collections.abc import Mapping
from pathlib import Path

import pandas

from umamba.evaluation.rules import Rules
from umamba.io import UserError

_DIGITS = 4  # decimals in the official scripts' tables
_CELL_COLUMNS = {
    "true_cells": "true_num",
    "predicted_cells": "pred_num",
    "found_cells": "correct_num(TP)",
    "missed_cells": "missed_num(FN)",
    "wrong_cells": "wrong_num(FP)",
    "precision": "precision",
    "recall": "recall",
    "dsc": "dice",
    "f1": "F1",
}


def official_tables(
    scores: pandas.DataFrame, pairs: Mapping[str, tuple[Path, Path]], rules: Rules
) -> dict[str, pandas.DataFrame]:
    """Return the tables that the official scripts write: one row for each case, four decimals.

    Args:
        scores: columns case, label and metrics.
        pairs: files (prediction, reference) of each case.
        rules: the protocol decides the tables.

    Returns:
        File name -> table.

    Raises:
        UserError: the protocol has no official script.
    """
    names = {case: prediction.name for case, (prediction, _) in pairs.items()}
    rounded = scores.round(_DIGITS)
    match rules.protocol:
        case "abdomen":
            tables = {}
            for metric in ("dsc", "nsd"):
                wide = rounded.pivot(index="case", columns="label", values=metric)[list(rules.labels.names)]
                wide.columns = [f"{label}_{metric.upper()}" for label in wide.columns]
                tables[f"{metric.upper()}.csv"] = wide
        case "endoscopy":
            means = scores.groupby("case")[["dsc", "nsd"]].mean().round(_DIGITS)
            tables = {f"{m.upper()}.csv": means[[m]].rename(columns={m: m.upper()}) for m in ("dsc", "nsd")}
        case "cell":
            wide = rounded.set_index("case")[list(_CELL_COLUMNS)].rename(columns=_CELL_COLUMNS)
            tables = {f"cells-{rules.iou_threshold}.csv": wide}
        case _:
            raise UserError(
                f"strict_official=true: protocol={rules.protocol} has no official script. Give strict_official=false."
            )
    column = "names" if rules.of_cells else "Name"
    return {
        name: table.rename(index=names).rename_axis(column).sort_index().reset_index() for name, table in tables.items()
    }
