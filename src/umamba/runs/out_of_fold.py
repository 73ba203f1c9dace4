"""Segmentations of training cases by networks that were not trained on them, from the folds of a cross-validation."""

from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umamba.datasets import RawCase, RawDataset
from umamba.inference.probabilities import read_probabilities
from umamba.io import Image, UserError, oriented_like, read_label
from umamba.labels import LabelSet
from umamba.labels.annotated import values_of
from umamba.records import RunFolder


@dataclass(frozen=True)
class Voted:
    """A label map, and what networks that never saw it say.

    Attributes:
        given: the label map (Z, Y, X).
        predicted: the segmentation (1, Z, Y, X) that most networks vote for, of the same dtype.
        margin: the votes for it less those for the given label, as a share of all votes, (Z, Y, X) float32.
    """

    given: np.ndarray
    predicted: Image
    margin: np.ndarray


def out_of_fold(folders: Sequence[Path], dataset: RawDataset) -> dict[str, tuple[Path, ...]]:
    """Return the segmentations of the training cases by folds that were not trained on them.

    Args:
        folders: runs/<experiment>/<configuration>, or results folders of nnU-Net. fold_all is left out, because it has
            been trained on all cases.
        dataset: the raw dataset.

    Returns:
        Case -> the segmentation of each fold and seed that has one. Files of other cases are left out.

    Raises:
        UserError: a folder has none.
    """
    known = {case.case_id for case in dataset.training}
    found: dict[str, list[Path]] = {}
    for folder in folders:
        places = [*folder.glob("fold_[0-9]*/seed_*"), *folder.glob("fold_[0-9]*")]
        files = [path for place in sorted(places) for path in _label_files(RunFolder(place), dataset.file_ending)]
        mine = [(path, case) for path in files if (case := path.name.removesuffix(dataset.file_ending)) in known]
        if not mine:
            raise UserError(
                f"runs={folder}: no fold has segmentations of its validation cases in "
                f"fold_<k>/seed_<s>/{RunFolder(folder).validation.name} that belong to {dataset.root}. Train the folds "
                "with predict.validation=true, and give the folder runs/<experiment>/<configuration>."
            )
        for path, case in mine:
            found.setdefault(case, []).append(path)
    return {case: tuple(paths) for case, paths in sorted(found.items())}


def _label_files(folder: RunFolder, ending: str) -> list[Path]:
    if not folder.validation.is_dir():
        return []
    return sorted(path for path in folder.validation.iterdir() if path.name.endswith(ending))


def vote(
    case: RawCase, files: Sequence[Path], labels: LabelSet, ending: str, carried: Sequence[str] | None = None
) -> Voted:
    """Read the label map of a case, and let the networks vote for each voxel.

    Each network's vote is its probabilities, where all networks have stored them, or else its label. Regions have no
    probabilities that exclude each other, so that their label counts. At equal votes the given label wins.

    Args:
        case: the case; its label is turned to the orientation of the segmentations.
        files: its segmentations. Probabilities stand beside them as NAME.npz.
        labels: the label set.
        ending: file ending of the segmentations.
        carried: labels that the label map of a partly labelled case carries; votes for others are votes for the
            background. None: all.

    Raises:
        UserError: a file cannot be read, or has another shape than the label map.
    """
    assert case.label is not None  # a raw dataset has no training case without a label
    first = read_label(files[0])
    given = oriented_like(read_label(case.label), first.geometry).array[0]
    if given.shape != first.array[0].shape:
        raise UserError(
            f"{files[0]}: has the shape {first.array[0].shape}, but {case.label} has {given.shape}. The image or its "
            "label was changed after the training; predict the case again."
        )
    stored = [path.with_name(f"{path.name.removesuffix(ending)}.npz") for path in files]
    if not labels.has_regions and all(path.exists() for path in stored):
        votes = _shares_by_probabilities(stored, labels, given.shape)
    else:
        votes = _shares_by_labels([first, *map(read_label, files[1:])], labels, files)
    if carried is not None:
        votes = _of_carried(votes, values_of(labels, carried))
    predicted, most, own = np.zeros_like(given), np.full(given.shape, -1, np.float32), np.zeros(given.shape, np.float32)
    for value, share in votes:
        mine = given == value
        better = (share > most) | (mine & (share >= most))
        predicted[better] = value
        np.maximum(most, share, out=most)
        own[mine] = share[mine]
    return Voted(given, Image(predicted[None], first.geometry), most - own)


def _of_carried(votes: Iterator[tuple[int, np.ndarray]], kept: Set[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the shares of some values, and those of all others as the background's."""
    background: np.ndarray | None = None
    for value, share in votes:
        if value in kept and value > 0:
            yield value, share
        else:
            background = share if background is None else background + share
    if background is not None:
        yield 0, background


def _shares_by_probabilities(
    stored: Sequence[Path], labels: LabelSet, shape: tuple[int, ...]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each label value, and its mean probability (Z, Y, X)."""
    with ExitStack() as stack:
        readers = [read_probabilities(path, (labels.num_classes, *shape)) for path in stored]
        for reader in readers:
            stack.callback(reader.close)  # type: ignore[attr-defined]
        for value in (0, *(values[0] for values in labels.values)):
            total = np.zeros(shape, np.float32)
            for reader in readers:
                total += next(reader)
            yield value, total / len(readers)


def _shares_by_labels(
    maps: Sequence[Image], labels: LabelSet, files: Sequence[Path]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each label value, and the share of the networks (Z, Y, X) that give it."""
    for image, path in zip(maps, files, strict=True):
        if image.array.shape != maps[0].array.shape:
            raise UserError(f"{path}: has another shape than {files[0]}. Predict the case again.")
    for value in (value for value in labels.all_values if value != labels.ignore):
        total = np.zeros(maps[0].array[0].shape, np.float32)
        for image in maps:
            total += image.array[0] == value
        yield value, total / len(maps)
