"""Which configuration or pair of configurations is best in cross-validation, and what post-processing helps it.

nnU-Net's rules (`find_best_configuration`, `determine_postprocessing`): each network predicts the cases it was not
trained on; the highest mean DSC over the labels wins, a single configuration before a pair of the same score. Of its
segmentations first only the largest component of all foreground is kept, if that raises the mean and lowers no label;
then that of each label, if that raises the label's own DSC.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from umamba.datasets import RawDataset
from umamba.evaluation import dice
from umamba.inference import PostProcessing, Predictor
from umamba.io import UserError, read_label, write_json
from umamba.labels import LabelSet
from umamba.planning import fold_cases


@dataclass(frozen=True)
class Validated:
    """What a configuration, or the mean of several, made of the cases it was not trained on.

    Attributes:
        name: of the configuration, or names joined by a plus.
        checkpoints: of all folds.
        segmentations: file of each case.
        scores: mean DSC of each label, NaN where no case has it.
    """

    name: str
    checkpoints: tuple[Path, ...]
    segmentations: Mapping[str, Path]
    scores: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean DSC over the labels."""
        return mean_score(self.scores)


def mean_score(scores: Mapping[str, float]) -> float:
    """Return the mean over the labels that have a score."""
    return float(np.nanmean(list(scores.values())))


def fold_checkpoints(candidate: Path, checkpoint: str, seed: int) -> dict[int, Path]:
    """Return the checkpoint of each trained fold of runs/<experiment>/<configuration>.

    Raises:
        UserError: there is none.
    """
    found = {
        int(path.parents[2].name.removeprefix("fold_")): path
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
) -> dict[str, float]:
    """Return the mean DSC over cases of each label, after a change of the segmentations.

    A case where neither map has a label is left out of that label's mean; the ignore label counts nowhere.
    """

    def score(case: str) -> list[float]:
        truth = read_label(truths[case]).array[0].astype(np.int64)
        predicted = change(read_label(segmentations[case]).array[0]).astype(np.int64)
        if labels.ignore is not None:
            counted = truth != labels.ignore
            predicted, truth = predicted * counted, truth * counted
        return [dice(np.isin(predicted, values), np.isin(truth, values)) for values in labels.values]

    with ThreadPoolExecutor(max(1, workers)) as pool:
        rows = np.array(list(pool.map(score, segmentations)))
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
    workers: int,
    **options: Any,
) -> Validated:
    """Predict the validation cases of every fold with that fold's networks, and score them; done ones are kept.

    Args:
        members: folds and checkpoints of each configuration whose mean is taken.
        dataset: the raw dataset.
        splits: splits_final.json; None: the folds are derived.
        output: folder of the segmentations.
        device: auto, cpu, cuda, ...
        workers: threads.
        options: further ones of `Predictor.predict_cases`.
    """
    name = "+".join(members)
    folds = sorted(next(iter(members.values())))
    cases = {case.case_id: case for case in dataset.training}
    segmentations: dict[str, Path] = {}
    for fold in folds:
        _, held_out = fold_cases(list(cases), fold, splits)
        predictor = Predictor.from_checkpoint([checkpoints[fold] for checkpoints in members.values()], device)
        folder = output / name / f"fold_{fold}"
        predictor.predict_cases([cases[case] for case in held_out], folder, workers=workers, **options)
        segmentations |= {case: folder / f"{case}{predictor.file_ending}" for case in held_out}
    truths = {case.case_id: case.label for case in dataset.training if case.label is not None}
    scores = mean_dice(segmentations, truths, dataset.labels, lambda segmentation: segmentation, workers)
    checkpoints = tuple(path for member in members.values() for path in member.values())
    return Validated(name, checkpoints, segmentations, scores)


def determine_post_processing(
    segmentations: Mapping[str, Path], truths: Mapping[str, Path], labels: LabelSet, workers: int
) -> tuple[PostProcessing, dict[str, float]]:
    """Return the steps that validation proves to help, and the DSC of each label with them."""

    def scored(steps: PostProcessing) -> dict[str, float]:
        return mean_dice(segmentations, truths, labels, steps.apply, workers)

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


def find_best(
    candidates: Sequence[Path],
    dataset: RawDataset,
    splits: Path | None,
    output: Path,
    *,
    pairs: bool = True,
    checkpoint: str = "last",
    seed: int = 0,
    device: str = "auto",
    workers: int = 2,
    **options: Any,
) -> tuple[list[Validated], PostProcessing, dict[str, float]]:
    """Validate configurations and their pairs, and determine the best one's post-processing.

    Writes output/post_processing.json, which `predict.py` applies, and output/best.json with everything that was found.

    Args:
        candidates: folders runs/<experiment>/<configuration>.
        dataset: the raw dataset they were trained on.
        splits: splits_final.json; None: the folds are derived.
        output: folder of the validation's segmentations and the two files.
        pairs: try the mean of two configurations, too.
        checkpoint: last or best.
        seed: of the runs.
        device: auto, cpu, cuda, ...
        workers: threads.
        options: further ones of `Predictor.predict_cases`.

    Returns:
        All that were validated, the best first; its post-processing, and the DSC of each label with it.

    Raises:
        UserError: the candidates differ in their trained folds, or have none.
    """
    members = {_name(path): fold_checkpoints(path, checkpoint, seed) for path in candidates}
    if len({tuple(sorted(folds)) for folds in members.values()}) != 1:
        found = "; ".join(f"{name} has {', '.join(map(str, sorted(folds)))}" for name, folds in members.items())
        raise UserError(f"candidates: not the same folds are trained: {found}. Train those that are missing.")
    tried = [{name: members[name]} for name in members]
    if pairs:
        tried += [{one: members[one], two: members[two]} for one, two in itertools.combinations(members, 2)]
    validated = [validate(each, dataset, splits, output, device=device, workers=workers, **options) for each in tried]
    ranked = sorted(validated, key=lambda each: -each.mean)
    best = ranked[0]
    truths = {case.case_id: case.label for case in dataset.training if case.label is not None}
    steps, scores = determine_post_processing(best.segmentations, truths, dataset.labels, workers)
    record = {"configuration": best.name, "dice_before": _json(best.scores), "dice_after": _json(scores)}
    steps.write(output / "post_processing.json", record)
    write_json(
        output / "best.json",
        {
            "best": best.name,
            "checkpoints": [str(path) for path in best.checkpoints],
            "mean_dice": {each.name: each.mean for each in ranked},
        },
    )
    return ranked, steps, scores


def ranking_table(ranked: Sequence[Validated]) -> Table:
    """Return the table of mean DSC, the best first."""
    table = Table(title="Cross-validation")
    for column in ("configuration", "DSC", *ranked[0].scores):
        table.add_column(column, justify="left" if column == "configuration" else "right")
    for each in ranked:
        table.add_row(each.name, f"{each.mean:.4f}", *(f"{score:.4f}" for score in each.scores.values()))
    return table


def _name(candidate: Path) -> str:
    path = Path(candidate).absolute()
    return f"{path.parent.name}.{path.name}"


def _json(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(score) else score for name, score in scores.items()}
