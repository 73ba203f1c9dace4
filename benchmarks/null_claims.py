"""How often the claim check claims a difference where there is none: one method's trainings play both methods.

python benchmarks/null_claims.py RUN_FOLDER... [--comparisons 300] [--each 2]

Each folder is a run of one configuration with another seed (runs/NAME/CONFIGURATION/fold_K/seed_S) and holds scores.csv
of the test images and validation.csv of the fold's. A comparison draws two disjoint groups of the trainings (halves, or
--each trainings) and half of the cases without replacement, and asks the claim check of the reports. The comparisons
share trainings and cases, so that the share of false claims is less certain than that of as many independent ones.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas

from umamba.evaluation.claims import compare, judged


def scores_of(run: Path, metric: str) -> pandas.Series:
    """Return the mean over labels of each held-out case of a run."""
    found = {}
    for name in ("scores.csv", "validation.csv"):
        table = pandas.read_csv(run / name)
        for case, value in table.groupby("case")[metric].mean().items():
            found[f"{name}: {case}"] = value
    return pandas.Series(found, name=run.name)


def main() -> None:
    """Compare groups of the trainings of one method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--comparisons", type=int, default=300)
    parser.add_argument("--metric", default="dsc")
    parser.add_argument("--each", type=int, help="trainings of each side; half of them")
    arguments = parser.parse_args()
    table = pandas.DataFrame([scores_of(run, arguments.metric) for run in arguments.runs])
    each = arguments.each or len(table) // 2
    generator = np.random.default_rng(0)
    claimed = 0
    for _ in range(arguments.comparisons):
        chosen = generator.permutation(len(table))
        cases = generator.permutation(table.shape[1])[: table.shape[1] // 2]
        sides = {"a": table.iloc[chosen[:each], cases], "b": table.iloc[chosen[each : 2 * each], cases]}
        (claim,) = judged(compare(sides, arguments.metric, 0.01))
        claimed += claim.survives
    by_training = table.mean(axis=1)
    print(f"{len(table)} trainings, {table.shape[1]} held-out cases, {each} and {each} trainings compared")
    print(f"mean {arguments.metric} of a training: {', '.join(f'{value:.4f}' for value in by_training)}")
    share = claimed / arguments.comparisons
    print(f"{claimed} of {arguments.comparisons} comparisons claimed a difference ({share:.1%})")


if __name__ == "__main__":
    main()
