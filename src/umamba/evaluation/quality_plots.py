"""Pictures of a calibration: expected against real DSC, and the risk that is left after a look at doubtful cases."""

from pathlib import Path

import numpy as np
import pandas

from umamba.evaluation.risk_coverage import risk_coverage, trust
from umamba.io import atomic_path
from umamba.labels.painting import new_figure


def plot_quality(rows: pandas.DataFrame, path: Path) -> None:
    """Draw two plots into a PNG, of cases that were estimated after learning from others.

    Args:
        rows: a row for each case: dsc, expected, low, high, beyond, confidence, disagreement.
        path: the file, written atomically.
    """
    figure = new_figure(9.6, 4.2)
    left, right = figure.subplots(1, 2)
    beyond = rows["beyond"].to_numpy(dtype=bool)
    known = rows[~beyond].sort_values("expected")
    left.fill_between(known["expected"], known["low"], known["high"], color="0.85", label="interval")
    left.plot(known["expected"], known["dsc"], ".", color="tab:blue", label="case")
    least = float(rows["dsc"].min()) if len(rows) else 0.0
    left.plot([least, 1], [least, 1], ":", color="black", linewidth=0.8)
    if beyond.any():
        left.plot(np.full(beyond.sum(), least), rows["dsc"][beyond], "x", color="tab:red", label="beyond (no number)")
    left.set_xlabel("expected DSC")
    left.set_ylabel("DSC")
    left.legend(frameon=False, fontsize=8)
    risk = 1 - rows["dsc"].to_numpy()
    orders = {
        "expected DSC": trust(rows["expected"].where(~beyond).to_numpy(), rows["disagreement"].to_numpy()),
        "mean softmax confidence": rows["confidence"].to_numpy(),
        "random": np.zeros(len(rows)),
        "DSC itself": rows["dsc"].to_numpy(),
    }
    for (name, confidence), style in zip(orders.items(), ("-", "--", ":", "-."), strict=True):
        coverage, left_over = risk_coverage(confidence, risk)
        right.plot(coverage, left_over, style, label=f"{name}: {left_over.mean():.4f}")
    right.set_xlabel("share of cases that nobody looks at")
    right.set_ylabel("their mean 1 - DSC")
    right.legend(frameon=False, fontsize=8, title="order, area under the curve", title_fontsize=8)
    figure.suptitle("Cases that were estimated after learning from others", fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
