"""Do two methods of a study complement each other? Pairs of their networks decide by the mean of their probabilities.

python benchmarks/pairs_of_networks.py experiments/controls_nuclei unet umamba_bot --output pairs.csv \
    paths.raw=RAW paths.preprocessed=PREPROCESSED paths.runs=RUNS

For each seed: the two methods' networks of this seed together; and as the control, two networks of one method, of this
seed and of the next one. Only what a mixed pair has above both controls shows that the methods complement each other,
because any two networks are better than one. Test images and the fold's validation cases are segmented as the study
segments them. The table has the columns of a report's scores.csv; the methods are called unet+umamba_bot and so on. A
pair that has written its scores is not repeated.
"""

import argparse
from itertools import chain
from pathlib import Path

import pandas
import torch

from umamba.cli.compose import settings_of
from umamba.cli.planned_runs import planned_runs
from umamba.inference import Predictor
from umamba.io.tabular import read_table, write_table
from umamba.reporting.results import METRICS, SCORE_COLUMNS, VALIDATION, label_names
from umamba.runs.preparation import plan_of, preprocess
from umamba.runs.score import score_cases, scoring_rules, validation_cases
from umamba.settings import TrainSettings
from umamba.sweeps import PlannedRun, read_study


def scored(first: PlannedRun, second: PlannedRun, folder: Path) -> pandas.DataFrame:
    """Segment the held-out cases with two networks together; return case, label and metrics."""
    settings = settings_of(TrainSettings, first.overrides)
    prepared = preprocess(plan_of(settings), settings)
    predictor = Predictor.from_checkpoint([first.folder.last, second.folder.last], engine=settings.predict.engine)
    rules, parts = scoring_rules(settings, prepared), []
    for ending, cases in (("", prepared.dataset.test), (VALIDATION, validation_cases(settings, prepared))):
        place = folder / (ending.strip(" ()") or "test")
        table = score_cases(predictor, cases, place, place.with_suffix(".csv"), rules, settings.predict.prediction)
        assert table is not None
        parts.append(table.assign(case=table["case"].astype(str) + ending))
    return pandas.concat(parts, ignore_index=True)


def main() -> None:
    """Score all pairs of networks and write their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder with sweep.yaml")
    parser.add_argument("first", help="a method of the study")
    parser.add_argument("second", help="another one")
    parser.add_argument("overrides", nargs="*", help="overrides of every run")
    parser.add_argument("--scratch", type=Path, default=Path("pairs_scratch"), help="folder of segmentations")
    parser.add_argument("--output", type=Path, required=True, help="CSV of the scores")
    arguments = parser.parse_intermixed_args()  # overrides may stand after the options
    torch.set_num_threads(1)
    study = read_study(arguments.study.parent, arguments.study.name)
    runs = {(run.method, run.seed): run for run in planned_runs(study, tuple(arguments.overrides))}
    names = (arguments.first, arguments.second)
    rows: list[tuple[object, ...]] = []
    for position, seed in enumerate(study.seeds):
        following = study.seeds[(position + 1) % len(study.seeds)]
        pairs = chain([((names[0], seed), (names[1], seed))], (((name, seed), (name, following)) for name in names))
        for one, other in pairs:
            run, method = runs[one], f"{one[0]}+{other[0]}"
            folder = arguments.scratch / study.name / f"{method}_{seed}"
            if not (folder / "scores.csv").exists():
                write_table(folder / "scores.csv", scored(run, runs[other], folder))
            table = read_table(folder / "scores.csv", ("case", "label"))
            labels = label_names(table["label"].unique())
            for values in table.to_dict("records"):
                found = [(metric, values[metric]) for metric in METRICS if pandas.notna(values.get(metric))]
                keys = (run.dataset, method, str(run.fold), seed, values["case"], labels[values["label"]])
                rows += [(*keys, metric, value) for metric, value in found]
    write_table(arguments.output, pandas.DataFrame(rows, columns=list(SCORE_COLUMNS)))


if __name__ == "__main__":
    main()
