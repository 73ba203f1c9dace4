"""`umamba study power`: what a study will be able to show, before anything is trained."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from umamba.cli.compose import settings_of
from umamba.cli.planned_runs import planned_runs
from umamba.cli.share import share
from umamba.cli.words import values_of
from umamba.datasets import list_findings
from umamba.evaluation.power import ALPHA, cases_needed, detectable_difference, trainings_needed
from umamba.evaluation.spread import Spreads
from umamba.io import UserError
from umamba.io.escape import rich_text
from umamba.reporting import Results, gather
from umamba.reporting.compare import measured_spreads
from umamba.settings import PowerSettings, TrainSettings, parse
from umamba.settings.dataset import CELL_PROTOCOLS
from umamba.sweeps import PlannedRun, read_study
from umamba.sweeps.study_file import is_study

log = logging.getLogger(__name__)
_MORE_CASES = (0.5, 1, 2, 4)
_TRAININGS = (2, 3, 5, 10)


@dataclass(frozen=True)
class Outlook:
    """What a study of one dataset can show by one metric.

    Attributes:
        title: the dataset and the metric.
        source: where the spreads are from.
        spreads: the spreads.
        cases: number of test cases.
        trainings: number of trainings of each method.
        comparisons: number of comparisons of one table, by which the level is divided.
    """

    title: str
    source: str
    spreads: Spreads
    cases: int
    trainings: int
    comparisons: int


def study_power(arguments: Sequence[str]) -> None:
    """Show the smallest detectable differences of a study and the cases or trainings that a difference needs.

    Args:
        arguments: the study, power.KEY=VALUE, and overrides of every run.

    Raises:
        UserError: a wrong study, key or override; the number of test cases is not known; no results to measure by.
    """
    own = [text.lstrip("+").removeprefix("power.") for text in arguments if text.lstrip("+").startswith("power.")]
    others = [text for text in arguments if not text.lstrip("+").startswith("power.")]
    names = [text for text in others if "=" not in text or is_study(text)]
    if len(names) != 1:
        raise UserError("umamba study power: give one study, such as table3_organs_3d. All: umamba study")
    wanted = parse(PowerSettings, values_of(PowerSettings, own))
    overrides = tuple(text for text in others if text not in names)
    study = read_study(share("experiments"), names[0])
    runs = planned_runs(study, overrides)
    for outlook in outlooks(runs, wanted, _measured(wanted, overrides), study.comparisons):
        log.info(outlook_table(outlook, wanted))
        log.info("%s\n", "\n".join(sentences(outlook, wanted)))


def outlooks(
    runs: Sequence[PlannedRun],
    wanted: PowerSettings,
    measured: Results | None,
    comparisons: Sequence[tuple[str, str]] = (),
) -> list[Outlook]:
    """Return what a study can show for each dataset: by each measured metric, or by any metric with assumed spreads.

    Args:
        runs: the runs of the study.
        wanted: the settings.
        measured: results that give the spreads; None: they are assumed.
        comparisons: pairs of methods that the study compares; none: all pairs.

    Raises:
        UserError: the number of test cases is not known, or a dataset has no results to measure by.
    """
    found = []
    for dataset in dict.fromkeys(run.dataset for run in runs):
        own = [run for run in runs if run.dataset == dataset]
        methods = list(dict.fromkeys(run.method for run in own))
        trainings = wanted.trainings or min(sum(run.method == method for run in own) for method in methods)
        settings = settings_of(TrainSettings, own[0].overrides)
        pairs = max(1, len(methods) * (len(methods) - 1) // 2)
        if comparisons:
            pairs = sum(set(pair) <= set(methods) for pair in comparisons)
        if not pairs:
            continue
        if measured is None:
            metrics = 1 if settings.dataset.protocol in CELL_PROTOCOLS else 2
            source = (
                f"assumed (power.case_sd={wanted.case_sd:g}, power.correlation={wanted.correlation:g}, "
                f"power.training_sd={wanted.training_sd:g})"
            )
            cases = wanted.cases or cases_of(settings)
            if cases is None:
                raise UserError(
                    f"{dataset}: the number of its test cases is not known, because {settings.dataset.root} has no "
                    "test images with labels (imagesTs, labelsTs). Give power.cases=NUMBER."
                )
            found.append(Outlook(dataset, source, assumed(wanted), cases, trainings, pairs * metrics))
            continue
        spreads = measured_spreads(measured, dataset)
        if not spreads:
            raise UserError(
                f"power.results={wanted.results}: has no two methods with two finished trainings each on {dataset}, so "
                "it does not show how much trainings differ. Give another study, or leave power.results out."
            )
        for metric, (spread, cases) in spreads.items():
            source = f"measured in {measured.name}"
            title = f"{dataset}, {metric.upper()}"
            found.append(Outlook(title, source, spread, wanted.cases or cases, trainings, pairs * len(spreads)))
    return found


def assumed(wanted: PowerSettings) -> Spreads:
    """Return the assumed spreads: differences of two scores with the same deviation and a correlation.

    Args:
        wanted: the settings.
    """
    return Spreads(wanted.case_sd * math.sqrt(2 * (1 - wanted.correlation)), wanted.training_sd, 0.0)


def cases_of(settings: TrainSettings) -> int | None:
    """Return the number of test cases with a reference of a training's dataset; None if it has none.

    Args:
        settings: the settings of the training.
    """
    if settings.dataset.kind == "phantom":
        return settings.dataset.phantom.num_test or None
    raw, _ = list_findings(settings.dataset.root)
    return sum(case.label is not None for case in raw.test) or None if raw else None


def outlook_table(outlook: Outlook, wanted: PowerSettings) -> Table:
    """Return the table of the smallest detectable differences by cases and trainings.

    Args:
        outlook: spreads, cases and trainings.
        wanted: the settings.
    """
    alpha = ALPHA / outlook.comparisons
    table = Table(
        title=rich_text(f"{outlook.title}: smallest difference that is seen with {wanted.power:.0%} probability"),
        title_justify="left",
    )
    table.add_column("trainings of each method")
    columns = sorted({max(2, round(outlook.cases * factor)) for factor in _MORE_CASES})
    for cases in columns:
        table.add_column(f"{cases} cases", justify="right")
    for trainings in sorted({*_TRAININGS, max(2, outlook.trainings)}):
        row = [detectable_difference(outlook.spreads, cases, trainings, alpha, wanted.power) for cases in columns]
        table.add_row(str(trainings), *(f"{value:.4f}" for value in row))
    return table


def sentences(outlook: Outlook, wanted: PowerSettings) -> list[str]:
    """Return what the study can show and what the wanted difference needs, in plain words.

    Args:
        outlook: spreads, cases and trainings.
        wanted: the settings.
    """
    alpha, spreads = ALPHA / outlook.comparisons, outlook.spreads
    told = [
        f"Standard deviations, {outlook.source}: of the difference of two methods over cases {spreads.difference:.4f}, "
        f"of a method over trainings {spreads.training:.4f}, of the rest {spreads.residual:.4f}. Level: {ALPHA:g} / "
        f"{outlook.comparisons} comparisons of a table.",
    ]
    if outlook.trainings < 2:
        told.append(
            "One training of each method shows nothing of the methods, because it does not show how much trainings "
            "differ. Give several seeds."
        )
    else:
        smallest = detectable_difference(spreads, outlook.cases, outlook.trainings, alpha, wanted.power)
        told.append(
            f"With {outlook.cases} cases and {outlook.trainings} trainings of each method, differences from "
            f"{smallest:.4f} on are seen."
        )
    many_cases = (
        cases_needed(spreads, outlook.trainings, wanted.difference, alpha, wanted.power)
        if outlook.trainings > 1
        else None
    )
    many_trainings = trainings_needed(spreads, outlook.cases, wanted.difference, alpha, wanted.power)
    trained = f"{outlook.trainings} {'training' if outlook.trainings == 1 else 'trainings'}"
    difference = f"a difference of {wanted.difference:g}"
    if many_cases is None and many_trainings is None:
        told.append(
            f"No number of cases with {trained} shows {difference}, and no number of trainings with {outlook.cases} "
            "cases does."
        )
    elif many_cases is None:
        told.append(
            f"{difference.capitalize()} needs {many_trainings} trainings with {outlook.cases} cases. No number of "
            f"cases with {trained} shows it."
        )
    elif many_trainings is None:
        told.append(
            f"{difference.capitalize()} needs {many_cases} cases with {trained}. No number of trainings with "
            f"{outlook.cases} cases shows it."
        )
    else:
        told.append(
            f"{difference.capitalize()} needs {many_cases} cases with {trained}, or {many_trainings} trainings with "
            f"{outlook.cases} cases."
        )
    return told


def _measured(wanted: PowerSettings, overrides: tuple[str, ...]) -> Results | None:
    """Return the results that the spreads are measured in; None if they are assumed."""
    if wanted.results is None:
        return None
    study = read_study(share("experiments"), wanted.results)
    return gather(study.name, study.question, planned_runs(study, overrides), None, overrides)
