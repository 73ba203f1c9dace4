"""The classes of whole images: a classification head over tiles, and classes.csv.

The network runs a second time for them, up to its bottleneck only, on tiles that overlap as little as they can. That
costs a small part of the segmentation's passes, and leaves the segmentation, whatever engine computes it, as it is.

The logits of the tiles are averaged; because the head is linear, that equals the logits of the mean features. A tile
counts by the part of the image that it stands for, which is the sum of its Gaussian weights of the sliding window, so
that every voxel counts once and padding does not count. Several networks are averaged by their probabilities.
"""

import csv
import itertools
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from umamba.datasets import RawCase
from umamba.inference.digests import image_digest
from umamba.inference.forward import at_once, by_single_threads, pooled_forward
from umamba.inference.likeness import refuse_flat_image
from umamba.inference.manifest import Manifest
from umamba.inference.model import Model
from umamba.inference.prepared_image import PreparedImage, prepare_image, warn_of_orientation
from umamba.inference.problems import Problems
from umamba.inference.tiling import Place, cut, tiles_along
from umamba.io import UserError, atomic_path, read_image, storage_errors
from umamba.io.escape import from_cell, to_cell
from umamba.io.voice import tracked
from umamba.labels.case_classes import CASE, CaseTask

log = logging.getLogger(__name__)
STEP = 1.0  # largest step between tiles as a fraction of the patch
_DIGITS = 6
_WRITE_S = 5.0  # a kill loses the classes of so many seconds at most
Probabilities = tuple[tuple[float, ...], ...]  # of each class of each task


def classify(prepared: PreparedImage, models: Sequence[Model], tta: bool) -> Probabilities:
    """Return the probabilities of the classes of an image, the mean over networks.

    Args:
        prepared: the image, as each network sees it.
        models: the networks, all with a head of the same tasks.
        tta: average over all flips of the patch axes that training mirrored.

    Raises:
        UserError: the logits are not finite.
    """
    summed: list[Tensor] = []
    for view, model in zip(prepared.views, models, strict=True):
        logits = image_logits(model, view.image, tta)
        if not all(bool(task.isfinite().all()) for task in logits):
            raise UserError("the logits of the classes are not finite. Check the image's values and the checkpoint.")
        found = [torch.softmax(task, dim=0) for task in logits]
        summed = found if not summed else [a + b for a, b in zip(summed, found, strict=True)]
    return tuple(tuple((task / len(models)).tolist()) for task in summed)


def classify_cases(
    cases: Sequence[RawCase],
    models: Sequence[Model],
    path: Path,
    new: Mapping[str, Probabilities],
    problems: Problems,
    tta: bool,
    manifest: Manifest | None = None,
) -> None:
    """Write classes.csv; cases without a row, such as those of an interrupted command, are read and classified now.

    Args:
        cases: images and names.
        models: the networks, all with a head of the same tasks.
        path: the table; its rows stay.
        new: rows of cases that were classified together with their segmentation.
        problems: receives the cases that cannot be classified.
        tta: see `classify`.
        manifest: notes of which image each row is; None: the segmentation of the case says it.

    Raises:
        StorageError: the table cannot be written.
    """
    heads = models[0].heads
    assert heads is not None
    rows = {**read_classes(path, heads.tasks), **new}
    turn_channels = models[0].plan.reader is not None
    seen: set[str] = set()
    todo = [case for case in cases if case.case_id not in rows]
    written = time.monotonic()
    try:
        for case in tracked(todo, "Classes", len(todo)):
            with problems.noting(case.case_id):
                image = read_image(case.images, time_is_channels=True, turn_channels=turn_channels)
                refuse_flat_image(image, models)
                prepared = prepare_image(image, models, case.case_id)
                warn_of_orientation(case.case_id, prepared.geometry, models, seen)
                found = classify(prepared, models, tta)
                if manifest is not None:
                    manifest.note_classes(case.case_id, case.images, image_digest(image))
                rows[case.case_id] = found
            if time.monotonic() - written >= _WRITE_S:
                write_classes(path, heads.tasks, rows)
                written = time.monotonic()
    finally:
        write_classes(path, heads.tasks, rows)
    log.info("Classes of %d cases: %s", len(rows), path)


def image_logits(model: Model, image: Tensor, tta: bool) -> list[Tensor]:
    """Return the logits of each task for an image: the weighted mean over its tiles.

    Args:
        model: a network with a head.
        image: (C, Z, Y, X) float32, along the axes of the file.
        tta: average over all flips of the patch axes that training mirrored.

    Returns:
        (classes,) float64 for each task.
    """
    forward = pooled_forward(model, tta)
    start = by_single_threads(forward, 1) if model.reproducible else at_once(forward)
    shape = tuple(image.shape[1:])
    axes = [tiles_along(length, size, STEP) for length, size in zip(shape, model.window, strict=True)]
    places = itertools.product(*axes)
    total: Tensor | None = None
    while batch := list(itertools.islice(places, model.tiles_per_pass)):
        logits = start(torch.stack([cut(image, place) for place in batch]))().cpu().double()
        weights = torch.tensor([tile_share(place, shape) for place in batch], dtype=torch.float64)
        part = weights @ logits
        total = part if total is None else total + part
    assert total is not None
    assert model.heads is not None
    return list(total.split(model.heads.sizes))


def tile_share(place: Place, shape: Sequence[int]) -> float:
    """Return the part of an image that a tile stands for; the parts of all tiles add up to 1.

    Args:
        place: the tile along each axis.
        shape: of the image (Z, Y, X), voxels.

    >>> round(sum(tile_share((tile,), (6,)) for tile in tiles_along(length=6, patch=4, tile_step_size=1.0)), 6)
    1.0
    """
    share = 1.0
    for tile, length in zip(place, shape, strict=True):
        inside = tile.weights[max(0, -tile.start) : length - tile.start]
        share *= float(inside.double().sum()) / length
    return share


def read_classes(path: Path, tasks: Sequence[CaseTask]) -> dict[str, Probabilities]:
    """Return the probabilities of each case in a classes.csv; a missing or foreign table has none.

    Args:
        path: the table.
        tasks: whose classes are its columns.
    """
    found: dict[str, Probabilities] = {}
    columns = _columns(tasks)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = [[from_cell(cell) for cell in row] for row in csv.reader(file)]
        if head != columns or any(len(row) != len(columns) for row in rows):
            return {}
        for row in rows:
            own: list[tuple[float, ...]] = []
            first = 2  # behind the columns case and that of the first task's most probable class
            for task in tasks:
                own.append(tuple(float(cell) for cell in row[first : first + len(task.classes)]))
                first += len(task.classes) + 1
            if all(math.isfinite(value) for values in own for value in values):
                found[row[0]] = tuple(own)
    except (OSError, ValueError, csv.Error):
        return {}
    return found


def forget_classes(path: Path, tasks: Sequence[CaseTask], cases: Sequence[str]) -> None:
    """Remove the rows of cases from a classes.csv.

    Args:
        path: the table; a missing one stays missing.
        tasks: the tasks.
        cases: names of the cases.

    Raises:
        StorageError: the table cannot be written.
    """
    rows = read_classes(path, tasks)
    if not rows.keys().isdisjoint(cases):
        write_classes(path, tasks, {name: row for name, row in rows.items() if name not in cases})


def write_classes(path: Path, tasks: Sequence[CaseTask], rows: Mapping[str, Probabilities]) -> None:
    """Write classes.csv: for each case and task the most probable class, and the probability of each class.

    Args:
        path: the table.
        tasks: the tasks.
        rows: case -> its probabilities.

    Raises:
        StorageError: the table cannot be written.
    """
    with storage_errors(path), atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(map(to_cell, _columns(tasks)))
        for case, row in sorted(rows.items()):
            writer.writerow([to_cell(case), *_cells(tasks, row)])


def named(tasks: Sequence[CaseTask], row: Probabilities) -> dict[str, dict[str, float]]:
    """Return task -> class -> probability.

    Args:
        tasks: the tasks.
        row: probabilities in their order.
    """
    return {task.name: dict(zip(task.classes, values, strict=True)) for task, values in zip(tasks, row, strict=True)}


def _columns(tasks: Sequence[CaseTask]) -> list[str]:
    return [CASE, *(name for task in tasks for name in (task.name, *(f"{task.name}={each}" for each in task.classes)))]


def _cells(tasks: Sequence[CaseTask], row: Probabilities) -> Iterable[str]:
    for task, values in zip(tasks, row, strict=True):
        yield to_cell(task.classes[values.index(max(values))])
        yield from (f"{value:.{_DIGITS}f}" for value in values)
