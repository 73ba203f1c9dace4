"""Find the configuration, or pair of configurations, that is best in cross-validation, and the post-processing for it.

nnU-Net's rules (`find_best_configuration`, `determine_postprocessing`): each network predicts the cases it was not
trained on. The highest mean DSC over the labels wins; at the same score a single configuration comes before a pair. The
winner's post-processing first keeps only the largest component of all foreground, if that raises the mean and lowers no
label; then the largest component of each label, if that raises the label's own DSC.
"""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from rich.table import Table

from umamba.datasets import RawDataset, read_dataset
from umamba.evaluation import dice
from umamba.evaluation.statistics import mean_label
from umamba.inference import PostProcessing, Predictor
from umamba.inference.checkpoints import warned_if_unfinished
from umamba.inference.first_stage import segment_first
from umamba.io import UserError, oriented_like, read_label, write_json
from umamba.io.escape import rich_text
from umamba.io.voice import showing
from umamba.labels import LabelSet
from umamba.labels.annotated import Annotated, annotated_mask
from umamba.planning import held_out_cases
from umamba.planning.plan import LOWRES
from umamba.records import read_checkpoint
from umamba.runs.first_stage import FirstStage, trained_folds
from umamba.settings import FindBestSettings, PredictionSettings

log = logging.getLogger(__name__)

NO_STAGES: Mapping[str, FirstStage] = MappingProxyType({})


@dataclass(frozen=True)
class Validated:
    """The cross-validation of a configuration, or of an ensemble of several.

    Attributes:
        name: name of the configuration, or names joined by a plus.
        checkpoints: checkpoints of all folds.
        segmentations: case -> file of its segmentation.
        scores: label -> mean DSC over cases, NaN if no case has the label.
        previous: checkpoints of the first stage in all folds; empty: there is no cascade among them.
    """

    name: str
    checkpoints: tuple[Path, ...]
    segmentations: Mapping[str, Path]
    scores: Mapping[str, float]
    previous: tuple[Path, ...] = ()

    @property
    def mean(self) -> float:
        """Mean DSC over the labels."""
        return mean_score(self.scores)


def mean_score(scores: Mapping[str, float]) -> float:
    """Return the mean over the labels that have a score.

    Args:
        scores: label -> score; NaN: the label has no score.
    """
    return float(np.nanmean(list(scores.values())))


def fold_checkpoints(candidate: Path, checkpoint: str, seed: int) -> dict[int, Path]:
    """Return the checkpoint of each trained fold of runs/<experiment>/<configuration>.

    Args:
        candidate: that folder.
        checkpoint: which checkpoint of each fold: last or best.
        seed: seed of the runs.

    Returns:
        Fold -> checkpoint file. There is a warning for a fold that still trains or was interrupted.

    Raises:
        UserError: there is none.
    """
    found = {
        int(path.parents[2].name.removeprefix("fold_")): warned_if_unfinished(path)
        for path in sorted(Path(candidate).glob(f"fold_[0-9]*/seed_{seed}/checkpoints/{checkpoint}.ckpt"))
    }
    if not found:
        raise UserError(
            f"candidates: no fold_<k>/seed_{seed}/checkpoints/{checkpoint}.ckpt in {candidate}. Give folders "
            "runs/<experiment>/<configuration> whose folds are trained."
        )
    return found


def mean_dice(
    segmentations: Mapping[str, Path],
    truths: Mapping[str, Path],
    labels: LabelSet,
    change: Callable[[np.ndarray], np.ndarray],
    workers: int,
    annotated: Annotated | None = None,
) -> dict[str, float]:
    """Return the mean DSC over cases of each label, after a change of the segmentations.

    A case is left out of a label's mean if neither its segmentation nor its reference has the label. Voxels with the
    ignore label do not count.

    Args:
        segmentations: case -> file of its segmentation. All these cases are scored.
        truths: case -> file of its reference.
        labels: the label set.
        change: takes and returns the label map (Z, Y, X) of a segmentation, such as `PostProcessing.apply`.
        workers: threads that read and score cases.
        annotated: labels of the partly labelled cases, which count for these alone; None: there are none.

    Returns:
        Label -> mean DSC from 0 to 1; NaN if no case has the label.
    """

    def score(case: str) -> list[float]:
        found = read_label(segmentations[case])
        truth = oriented_like(read_label(truths[case]), found.geometry).array[0].astype(np.int64)
        predicted = change(found.array[0]).astype(np.int64)
        if labels.ignore is not None:
            counted = truth != labels.ignore
            predicted, truth = predicted * counted, truth * counted
        return [dice(np.isin(predicted, values), np.isin(truth, values)) for values in labels.values]

    with ThreadPoolExecutor(max(1, workers)) as pool:
        rows = np.array(list(pool.map(score, segmentations)))
    rows[~annotated_mask(labels, annotated or {}, list(segmentations))] = np.nan
    scored = ~np.isnan(rows)
    sums, counts = np.where(scored, rows, 0).sum(0), scored.sum(0)
    return {
        name: float(total / count) if count else float("nan")
        for name, total, count in zip(labels.names, sums, counts, strict=True)
    }


def validate(
    members: Mapping[str, Mapping[int, Path]],
    dataset: RawDataset,
    splits: Path | None,
    output: Path,
    *,
    device: str,
    settings: PredictionSettings,
    trust: str | Sequence[str] = (),
    engine: str = "auto",
    first_stages: Mapping[str, FirstStage] = NO_STAGES,
    tile_scale: int = 1,
) -> Validated:
    """Predict the validation cases of every fold with that fold's networks, and score them.

    Args:
        members: configuration -> fold -> checkpoint. Several configurations form an ensemble; all have the same folds.
        dataset: the raw dataset.
        splits: splits_final.json; None: nnU-Net's five-fold split.
        output: folder of the segmentations.
        device: auto, cpu, cuda, ...
        settings: how cases are segmented.
        trust: packages whose functions may build the networks.
        engine: auto, torch or openvino.
        first_stages: configuration -> the first stage, for those that are cascades.
        tile_scale: edge of a tile in patches of training.

    Raises:
        UserError: the first stage of a cascade is not trained, or two of them have different ones.
    """
    name = "+".join(members)
    folds = sorted(next(iter(members.values())))
    cases = {case.case_id: case for case in dataset.training}
    segmentations: dict[str, Path] = {}
    previous: list[Path] = []
    for fold in folds:
        held_out = held_out_cases(list(cases), fold, splits, dataset.groups)
        predictor = Predictor.from_checkpoint(
            [checkpoints[fold] for checkpoints in members.values()],
            device,
            trust=trust,
            engine=engine,
            tile_scale=tile_scale,
        )
        folder, chosen, asked = output / name / f"fold_{fold}", [cases[case] for case in held_out], settings
        if any(model.configuration.previous_stage is not None for model in predictor.models):
            stages = {stage.folder: stage for member, stage in first_stages.items() if member in members}
            if len(stages) != 1:
                raise UserError(f"candidates: {name} are cascades of different first stages. Give pairs=false.")
            (stage,) = stages.values()
            first = output / "previous_stage" / "_".join(stage.folder.parts[-2:]) / f"fold_{fold}"
            previous.append(stage.checkpoint(fold))
            asked = segment_first(
                *(predictor, previous[-1:], chosen, first, settings),
                device=device,
                engine=engine,
                trust=trust,
            )
        predictor.predict_cases(chosen, folder, asked, progress=showing())
        segmentations |= {case: folder / f"{case}{predictor.file_ending}" for case in held_out}
    truths = {case.case_id: case.label for case in dataset.training if case.label is not None}
    scores = mean_dice(
        segmentations, truths, dataset.labels, lambda segmentation: segmentation, settings.workers, dataset.annotated
    )
    checkpoints = tuple(path for member in members.values() for path in member.values())
    return Validated(name, checkpoints, segmentations, scores, tuple(previous))


def determine_post_processing(
    segmentations: Mapping[str, Path],
    truths: Mapping[str, Path],
    labels: LabelSet,
    workers: int,
    annotated: Annotated | None = None,
) -> tuple[PostProcessing, dict[str, float]]:
    """Return the post-processing steps that raise the validation scores (nnU-Net's `determine_postprocessing`).

    Args:
        segmentations: case -> file of its segmentation in cross-validation.
        truths: case -> file of its reference.
        labels: the label set.
        workers: threads that read and score cases.
        annotated: labels of the partly labelled cases; None: there are none.

    Returns:
        The steps, and the mean DSC of each label (0 to 1) after them.
    """

    def scored(steps: PostProcessing) -> dict[str, float]:
        return mean_dice(segmentations, truths, labels, steps.apply, workers, annotated)

    chosen = PostProcessing()
    scores = scored(chosen)
    foreground = tuple(value for value in labels.all_values if value not in (0, labels.ignore))
    tried = PostProcessing((foreground,))
    after = scored(tried)
    if mean_score(after) > mean_score(scores) and not any(after[name] < scores[name] for name in scores):
        chosen, scores = tried, after
    if len(labels.names) > 1:
        for name, values in zip(labels.names, labels.values, strict=True):
            tried = PostProcessing((*chosen.steps, values))
            after = scored(tried)
            if after[name] > scores[name]:
                chosen, scores = tried, after
    return chosen, scores


@dataclass(frozen=True)
class Selection:
    """What `find_best` returns.

    Attributes:
        ranked: all candidates and pairs, in descending order of mean DSC.
        post_processing: the post-processing of the best one.
        scores: mean DSC of each label of the best one, after post-processing.
    """

    ranked: tuple[Validated, ...]
    post_processing: PostProcessing
    scores: Mapping[str, float]

    @property
    def best(self) -> Validated:
        """The best candidate or pair."""
        return self.ranked[0]


def find_best(settings: FindBestSettings) -> Selection:
    """Validate configurations and their pairs, and determine the best one's post-processing.

    Writes output/post_processing.json, which `umamba predict` applies, and output/best.json, which has the name and
    checkpoints of the best one, and the mean DSC of all candidates and pairs.

    Args:
        settings: candidates, raw dataset, output, splits and how cases are segmented.

    Raises:
        UserError: the candidates differ in their trained folds, or have none.
    """
    dataset = read_dataset(settings.raw_dataset)
    own = dataset.root / "splits_final.json"
    splits = settings.splits or (own if own.exists() else None)
    names = [_name(path) for path in settings.candidates]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        listed = ", ".join(str(path) for path in settings.candidates if _name(path) == twice)
        raise UserError(
            f"candidates: {listed} have one name, {twice}, so that their results could not be told apart. Give another "
            "name to the folder of one of them."
        )
    members = {_name(path): fold_checkpoints(path, settings.checkpoint, settings.seed) for path in settings.candidates}
    members = {name: without_repeats(checkpoints, dataset, splits) for name, checkpoints in members.items()}
    if len({tuple(sorted(folds)) for folds in members.values()}) != 1:
        found = "; ".join(f"{name} has {', '.join(map(str, sorted(folds)))}" for name, folds in members.items())
        raise UserError(f"candidates: not the same folds are trained: {found}. Train those that are missing.")
    tried = [{name: members[name]} for name in members]
    if settings.pairs:
        tried += [{one: members[one], two: members[two]} for one, two in itertools.combinations(members, 2)]
    prediction, output = settings.prediction, settings.output
    stages = {
        _name(path): trained_folds(settings.previous_stage or path.absolute().parent / LOWRES, settings.seed)
        for path in settings.candidates
        if _is_cascade(next(iter(members[_name(path)].values())))
    }
    for name, stage in stages.items():
        for fold in members[name]:
            stage.checkpoint(fold)  # a missing one is named before any image is segmented
    validated = [
        validate(
            *(each, dataset, splits, output),
            device=settings.device,
            settings=prediction,
            trust=settings.trust,
            engine=settings.engine,
            first_stages=stages,
            tile_scale=settings.tile_scale,
        )
        for each in tried
    ]
    ranked = tuple(sorted(validated, key=lambda each: -each.mean))
    best = ranked[0]
    truths = {case.case_id: case.label for case in dataset.training if case.label is not None}
    steps, scores = determine_post_processing(
        best.segmentations, truths, dataset.labels, settings.workers, dataset.annotated
    )
    record = {"configuration": best.name, "dice_before": _json(best.scores), "dice_after": _json(scores)}
    steps.write(output / "post_processing.json", record)
    write_json(
        output / "best.json",
        {
            "best": best.name,
            "checkpoints": [str(path) for path in best.checkpoints],
            **({"previous_checkpoints": [str(path) for path in best.previous]} if best.previous else {}),
            "mean_dice": {each.name: each.mean for each in ranked},
        },
    )
    return Selection(ranked, steps, scores)


def _is_cascade(checkpoint: Path) -> bool:
    """Return whether a network is the second stage of a cascade."""
    return read_checkpoint(checkpoint, trust=None).record.configuration.previous_stage is not None


def without_repeats(checkpoints: Mapping[int, Path], dataset: RawDataset, splits: Path | None) -> dict[int, Path]:
    """Leave out folds that validate a case of a fold before them, such as the random splits beyond the last fold.

    Args:
        checkpoints: fold -> checkpoint.
        dataset: the raw dataset.
        splits: splits_final.json; None: nnU-Net's five-fold split.
    """
    kept: dict[int, Path] = {}
    counted: set[str] = set()
    for fold, path in sorted(checkpoints.items()):
        held_out = set(held_out_cases([case.case_id for case in dataset.training], fold, splits, dataset.groups))
        if held_out & counted:
            log.warning("%s is left out: fold %d validates cases of other folds, which would count twice.", path, fold)
            continue
        counted |= held_out
        kept[fold] = path
    return kept


def ranking_table(ranked: Sequence[Validated]) -> Table:
    """Return a printable table of the mean DSC of all labels and of each label.

    Args:
        ranked: the candidates in the order of the rows, at least one.
    """
    table = Table(title="Validation cases of all folds: DSC, mean over cases", caption="mean: over the labels' means")
    table.add_column("configuration")
    for column in (mean_label(ranked[0].scores), *ranked[0].scores):
        table.add_column(rich_text(column), justify="right")
    for each in ranked:
        table.add_row(rich_text(each.name), f"{each.mean:.4f}", *(f"{score:.4f}" for score in each.scores.values()))
    return table


def _name(candidate: Path) -> str:
    path = Path(candidate).absolute()
    return f"{path.parent.name}.{path.name}"


def _json(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(score) else score for name, score in scores.items()}
