"""Learn from scored cases how far to trust a segmentation (`evaluation.quality`), and check it on held-out parts.

The cases were not seen by the networks that segment them: those of cross-validation by the networks of their fold, or
images of their own with references.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from umamba.datasets import RawCase, read_dataset
from umamba.evaluation import Rules, score_pairs
from umamba.evaluation.quality import (
    DISTANCES,
    FORMAT,
    SIGNS,
    Calibration,
    calibrate_labels,
    fewest_cases,
    out_of_sample,
)
from umamba.evaluation.risk_coverage import area, trust
from umamba.inference import Predictor
from umamba.inference.agreement import CaseSigns
from umamba.inference.cases import list_cases
from umamba.inference.outputs import Outputs
from umamba.inference.problems import UnsegmentedCases
from umamba.io import UserError, make_folder, supported_endings
from umamba.io.tabular import write_table
from umamba.io.voice import showing
from umamba.labels import LabelSet
from umamba.labels.annotated import Annotated, annotated_beside
from umamba.planning import held_out_cases
from umamba.runs.select import fold_checkpoints, without_repeats
from umamba.settings import CalibrateSettings

log = logging.getLogger(__name__)


@dataclass
class _Segmented:
    """What the networks made of the cases.

    Attributes:
        labels: the label set.
        networks: number of networks that decide together.
        identities: hashes of all checkpoints.
        pairs: case -> segmentation and reference.
        signs: case -> its signs.
        groups: case -> its group.
        annotated: labels of the partly labelled cases.
    """

    labels: LabelSet
    networks: int = 0
    identities: list[str] = field(default_factory=list)
    pairs: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    signs: dict[str, CaseSigns] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    annotated: Annotated = field(default_factory=dict)

    def add(self, predictor: Predictor, cases: Sequence[RawCase], folder: Path, settings: CalibrateSettings) -> None:
        """Segment cases that have a reference, and keep what is needed to score them."""
        prediction = settings.prediction
        try:
            predictor.predict_cases(cases, folder, prediction, progress=showing())
        except UnsegmentedCases as error:
            log.warning("%s\nThe other images are used.", error)
        outputs = Outputs(folder, predictor.file_ending)
        self.networks = len(predictor.models)
        self.identities += [model.identity for model in predictor.models]
        for case in cases:
            files = outputs.case(case.case_id, prediction)
            if case.label is not None and files.agreement is not None and files.complete():
                self.pairs[case.case_id] = (files.segmentation, case.label)
                self.signs[case.case_id] = CaseSigns.read(files.agreement)


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` returns.

    Attributes:
        path: quality.json.
        calibration: its content.
        checked: how well cases are estimated after learning from others: cases, share within the interval (coverage),
            mean width, share beyond what was learned from, and areas under the risk-coverage curve (aurc_...), for the
            mean over labels; NaN if there were too few cases.
    """

    path: Path
    calibration: Calibration
    checked: Mapping[str, float]


def calibrate(settings: CalibrateSettings) -> Calibrated:
    """Segment and score cases, learn, and write quality.json, cases.csv and quality.png.

    Args:
        settings: the networks, the cases and the output.

    Raises:
        UserError: there are too few cases, or networks, images or references cannot be used.
        StorageError: the output cannot be written.
    """
    found = _cross_validated(settings) if settings.candidates else _held_out(settings)
    make_folder(settings.output)
    if not found.pairs:
        raise UserError("calibrate: no case could be segmented, so nothing can be learned; the reasons stand above.")
    rules = Rules(found.labels, tolerance_mm=settings.tolerance_mm, annotated=found.annotated)
    scores, problems = score_pairs(found.pairs, rules)
    if problems:
        raise UserError("These cases could not be scored:\n" + "\n".join(problems))
    carried = [
        label in found.annotated.get(case, found.labels.names)
        for case, label in zip(scores["case"], scores["label"], strict=True)
    ]
    table = _with_signs(scores[carried].reset_index(drop=True), found.signs)
    write_table(settings.output / "cases.csv", table)
    unlike = sorted(case for case, signs in found.signs.items() if signs.differences)
    if unlike:
        log.warning(
            "%d of %d cases, such as %s, are unlike the training images. They count, and images that are as unlike get "
            "a number, too. If these are no proper images, remove them and calibrate again.",
            *(len(unlike), len(found.signs), unlike[0]),
        )
    names, cases = found.labels.names, table["case"].nunique()
    learned = calibrate_labels(table, names, found.groups, settings.coverage)
    if not any(own.fits for own in learned):
        if found.groups and any(own.cases >= fewest_cases(settings.coverage) for own in learned):
            raise UserError(
                f"calibrate: coverage={settings.coverage:g} needs {fewest_cases(settings.coverage)} cases in two "
                f"halves, and the cases of a group stay together. The {len(set(found.groups.values()))} groups are too "
                "few or too unequal for that. Give cases of more groups, or a smaller coverage."
            )
        raise UserError(
            f"{settings.output / 'cases.csv'}: in fewer than {fewest_cases(settings.coverage)} of {cases} cases a "
            f"label was found and the agreement of the networks measured, but coverage={settings.coverage:g} needs "
            "so many. Give more cases, or a smaller coverage."
        )
    far = {name: float(table[name].max()) for name in DISTANCES}
    any_signs = next(iter(found.signs.values()))
    calibration = Calibration(
        format=FORMAT,
        coverage=settings.coverage,
        views=any_signs.views,
        networks=found.networks,
        identities=tuple(sorted(set(found.identities))),
        names=names,
        tile_step_size=settings.tile_step_size,
        tta=settings.tta,
        tile_scale=settings.tile_scale,
        rules=rules.sentence,
        cases=cases,
        unlike=len(unlike),
        spacing=far["spacing"],
        field_of_view=far["field_of_view"],
        intensities=far["intensities"],
        labels=learned,
    )
    rest = out_of_sample(table, names, found.groups, settings.coverage)
    whole = rest[rest["label"] == calibration.overall]
    checked = check(whole)
    path = settings.output / "quality.json"
    calibration.write(path, {"checked": {name: value for name, value in checked.items() if np.isfinite(value)}})
    if len(whole):
        from umamba.evaluation.quality_plots import plot_quality

        plot_quality(whole, settings.output / "quality.png")
    return Calibrated(path, calibration, checked)


def check(rows: pandas.DataFrame) -> dict[str, float]:
    """Return how well the DSC of cases is estimated.

    Args:
        rows: of `out_of_sample`, one for each case.

    Returns:
        See `Calibrated.checked`; aurc_expected by expected DSC (see `trust`), aurc_confidence by mean
        softmax confidence, aurc_random for a random order, aurc_best by the DSC itself.
    """
    names = ("coverage", "width", "beyond", "aurc_expected", "aurc_confidence", "aurc_random", "aurc_best")
    if rows.empty:
        return {"cases": 0.0, **dict.fromkeys(names, float("nan"))}
    dsc, beyond = rows["dsc"].to_numpy(), rows["beyond"].to_numpy(dtype=bool)
    inside = ((rows["low"] <= rows["dsc"]) & (rows["dsc"] <= rows["high"])).to_numpy()[~beyond]
    risk, expected = 1 - dsc, trust(rows["expected"].where(~beyond).to_numpy(), rows["disagreement"].to_numpy())
    return {
        "cases": float(len(rows)),
        "coverage": float(inside.mean()) if inside.size else float("nan"),
        "width": float((rows["high"] - rows["low"]).to_numpy()[~beyond].mean()) if inside.size else float("nan"),
        "beyond": float(beyond.mean()),
        "aurc_expected": area(expected, risk),
        "aurc_confidence": area(rows["confidence"].to_numpy(), risk),
        "aurc_random": float(risk.mean()),
        "aurc_best": area(dsc, risk),
    }


def _cross_validated(settings: CalibrateSettings) -> _Segmented:
    """Segment each training case by the networks of the fold that held it out."""
    assert settings.raw_dataset is not None
    dataset = read_dataset(settings.raw_dataset)
    own = dataset.root / "splits_final.json"
    splits = settings.splits or (own if own.exists() else None)
    members = [
        without_repeats(fold_checkpoints(candidate, settings.which, seed), dataset, splits)
        for candidate in settings.candidates
        for seed in settings.seeds
    ]
    folds = sorted(members[0])
    if any(sorted(member) != folds for member in members):
        raise UserError("candidates: not the same folds of all folders and seeds are trained. Train the missing ones.")
    cases = {case.case_id: case for case in dataset.training}
    held_out = {fold: held_out_cases(list(cases), fold, splits, dataset.groups) for fold in folds}
    _check_number(sum(map(len, held_out.values())), f"raw_dataset={settings.raw_dataset}", settings)
    found = _Segmented(dataset.labels, groups=dict(dataset.groups or {}), annotated=dataset.annotated)
    for fold in folds:
        predictor = Predictor.from_checkpoint(
            [member[fold] for member in members],
            settings.device,
            trust=settings.trust,
            engine=settings.engine,
            tile_scale=settings.tile_scale,
        )
        found.add(predictor, [cases[case] for case in held_out[fold]], settings.output / f"fold_{fold}", settings)
    return found


def _held_out(settings: CalibrateSettings) -> _Segmented:
    """Segment the images that have a reference."""
    assert settings.images is not None
    assert settings.labels is not None
    predictor = Predictor.from_checkpoint(
        settings.checkpoints,
        settings.device,
        trust=settings.trust,
        engine=settings.engine,
        tile_scale=settings.tile_scale,
    )
    cases = []
    for case in list_cases(settings.images, predictor.num_channels):
        files = (settings.labels / f"{case.case_id}{ending}" for ending in supported_endings())
        label = next((file for file in files if file.exists()), None)
        if label is not None:
            cases.append(RawCase(case.case_id, case.images, label))
    if not cases:
        raise UserError(
            f"labels={settings.labels}: holds no reference of the images in {settings.images}. A reference has the "
            "image's name without _0000."
        )
    _check_number(len(cases), f"labels={settings.labels}", settings)
    names = [case.case_id for case in cases]
    annotated = annotated_beside(settings.labels.parent / "dataset.json", predictor.labels, names)
    found = _Segmented(predictor.labels, annotated=annotated)
    found.add(predictor, cases, settings.output / "segmentations", settings)
    return found


def _check_number(cases: int, where: str, settings: CalibrateSettings) -> None:
    """Refuse too few cases before they are segmented."""
    fewest = fewest_cases(settings.coverage)
    if cases < fewest:
        raise UserError(
            f"{where}: {cases} cases with a reference are too few; coverage={settings.coverage:g} needs at least "
            f"{fewest} with a label."
        )


def _with_signs(scores: pandas.DataFrame, signs: Mapping[str, CaseSigns]) -> pandas.DataFrame:
    """Return the scores with a column for each sign and distance; NaN where a label was not found."""
    rows: list[dict[str, Any]] = []
    for case, label in zip(scores["case"], scores["label"], strict=True):
        own, far = signs[case].labels.get(label, {}), signs[case].distances
        values = {sign: own.get(sign) for sign in (*SIGNS, "confidence")} | {name: far.get(name) for name in DISTANCES}
        rows.append({name: np.nan if value is None else float(value) for name, value in values.items()})
    columns = [*SIGNS, "confidence", *DISTANCES]
    return pandas.concat([scores, pandas.DataFrame(rows, columns=columns, dtype=float)], axis=1)
