"""Segment images with checkpoints, then draw the first ones, so that one look shows gross mistakes."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from umamba.datasets import RawCase
from umamba.inference import PostProcessing, Predictor
from umamba.inference.case_queue import Watch
from umamba.inference.cases import find_cases
from umamba.inference.first_stage import segment_first
from umamba.inference.outputs import Outputs
from umamba.inference.prepared_image import check_previous
from umamba.inference.problems import UnsegmentedCases
from umamba.io import Image, StorageError, read_image, read_label, storage_errors
from umamba.io.lazy import load_beside
from umamba.io.voice import showing, tracked
from umamba.records.zoo import zoo_sample
from umamba.settings import PredictSettings
from umamba.settings.fields import listed

if TYPE_CHECKING:
    from umamba.evaluation.quality import Calibration

log = logging.getLogger(__name__)

# Reads an image and its label map or numbered cells (Z, Y, X).
Read = Callable[[], tuple[Image, np.ndarray]]
PREVIOUS_STAGE = "previous_stage"  # folder of the first stage's segmentations in the output


def predict(settings: PredictSettings) -> list[Path]:
    """Segment images, draw previews and, with `quality`, say how far to trust each segmentation.

    Args:
        settings: the checkpoints, the images, and how they are segmented.

    Returns:
        The segmentations of all cases in the order of their names, those of earlier calls included.

    Raises:
        UserError: a checkpoint or the calibration cannot be used, or some images could not be segmented; the others
            are, and are drawn.
        StorageError: the output cannot be written.
    """
    settings = replace(settings, input=zoo_sample(settings.input))
    predictor = Predictor.from_checkpoint(
        settings.checkpoints,
        device=settings.device,
        precision=settings.precision,
        post_processing=PostProcessing.read(settings.post_processing) if settings.post_processing else None,
        trust=settings.trust,
        engine=settings.engine,
        reproducible=settings.reproducible,
        tile_scale=settings.tile_scale,
    )
    outputs = Outputs.at(settings.output, predictor.file_ending)
    if settings.previous_checkpoint is not None:
        settings = _with_first_stage(predictor, settings)
    calibration = None
    if settings.quality is not None:
        from umamba.runs.quality import read_calibration  # scipy and pandas, which other predictions do not need

        calibration = read_calibration(settings.quality, predictor, settings)
        settings = replace(settings, agreement=True)
    if settings.previews:
        load_beside("umamba.evaluation.overlay")  # while the networks compute
    try:
        with _drawing_beside(predictor, outputs, settings) as watch:
            paths = predictor.predict(settings.input, settings.output, settings, progress=showing(), watch=watch)
    except UnsegmentedCases:
        _look_back(predictor, outputs, settings, calibration)
        raise
    _look_back(predictor, outputs, settings, calibration)
    return paths


def _with_first_stage(predictor: Predictor, settings: PredictSettings) -> PredictSettings:
    """Segment the images by the first stage of a cascade, into a folder beside their segmentations by the second."""
    check_previous(predictor.models, "previous_checkpoint")
    paths = settings.previous_checkpoint
    cases, _ = find_cases(settings.input, predictor.num_channels, warn=False)  # Predictor.predict warns
    folder = Outputs.at(settings.output, predictor.file_ending).folder / PREVIOUS_STAGE
    return segment_first(
        predictor,
        listed(paths),
        cases,
        folder,
        replace(settings, previous_checkpoint=None),
        device=settings.device,
        engine=settings.engine,
        precision=settings.precision,
        trust=settings.trust,
        reproducible=settings.reproducible,
    )


def _look_back(
    predictor: Predictor, outputs: Outputs, settings: PredictSettings, calibration: "Calibration | None"
) -> None:
    """Draw previews and say how far to trust the segmentations, those to look at first."""
    if calibration is None:
        draw_previews(predictor, outputs, settings)
        return
    from umamba.runs.quality import estimates_of, write_page

    estimates, order = estimates_of(calibration, predictor, outputs, settings)
    draw_previews(predictor, outputs, settings, order)
    write_page(calibration, estimates, order, outputs)


@contextmanager
def _drawing_beside(predictor: Predictor, outputs: Outputs, settings: PredictSettings) -> Iterator[Mapping[str, Watch]]:
    """Yield the functions that draw the first images while their segmentations are written, instead of read again."""
    # The quality decides which images are drawn; an absent matplotlib is told by `draw_previews`.
    if not settings.previews or settings.quality is not None or find_spec("matplotlib") is None:
        yield {}
        return
    cases, _ = find_cases(settings.input, predictor.num_channels, warn=False)
    drawn: list[tuple[str, Future[bool]]] = []

    def draw(case_id: str, image: Image, found: np.ndarray) -> None:
        picture = outputs.preview(case_id)
        drawn.append((case_id, pool.submit(_draw, predictor, settings, case_id, lambda: (image, found), picture)))

    with ThreadPoolExecutor(1) as pool:
        try:
            yield {case.case_id: partial(draw, case.case_id) for case in cases[: settings.previews]}
        finally:
            for case_id, done in drawn:
                if not done.result():
                    continue
                picture = outputs.preview(case_id)
                if outputs.case(case_id, settings).segmentation.exists():
                    os.utime(picture)  # newer than the segmentation, so that it counts as drawn
                else:
                    picture.unlink(missing_ok=True)


def draw_previews(
    predictor: Predictor, outputs: Outputs, settings: PredictSettings, order: Sequence[str] = ()
) -> list[Path]:
    """Draw the first images with their segmentations; a picture that is newer than its segmentation is kept.

    Args:
        predictor: the networks, for their labels.
        outputs: where the segmentations are, and the pictures go.
        settings: `input`, `instances` and the number of `previews`.
        order: cases that come before the others.

    Returns:
        The PNG files of the drawn cases.

    Raises:
        StorageError: a picture cannot be written.
    """
    if not settings.previews:
        return []
    try:
        import umamba.evaluation.overlay  # noqa: F401  # needs matplotlib
    except ImportError as error:
        log.warning("No previews, because %s is not installed; previews=0 asks for none.", error.name)
        return []
    cases, _ = find_cases(settings.input, predictor.num_channels, warn=False)
    wanted = []
    rank = {case_id: number for number, case_id in enumerate(order)}
    for case in sorted(cases, key=lambda case: rank.get(case.case_id, len(rank))):
        files, picture = outputs.case(case.case_id, settings), outputs.preview(case.case_id)
        drawn = files.instances or files.segmentation
        if drawn.exists():
            wanted.append((case, drawn, picture))
        if len(wanted) == settings.previews:
            break
    wanted = [entry for entry in wanted if _older(entry[2], entry[1])]
    made = []
    drawing = zip(wanted, _read_ahead([(case, drawn) for case, drawn, _ in wanted]), strict=True)
    for (case, _, picture), read in tracked(drawing, "Drawing previews", len(wanted)):
        if _draw(predictor, settings, case.case_id, read, picture):
            made.append(picture)
    return made


def _draw(predictor: Predictor, settings: PredictSettings, case_id: str, read: Read, picture: Path) -> bool:
    """Draw an image with its label map or cells; return whether it worked, because a picture is no reason to fail."""
    try:
        from umamba.evaluation.overlay import overlay_figure, write_overlay
        from umamba.labels.view import letters_of

        image, found = read()
        figure = overlay_figure(
            image.array,
            None,
            found,
            image.geometry.spacing,
            predictor.labels,
            letters=letters_of(image.geometry),
            title=case_id,
            instances=settings.instances is not None,
        )
        with storage_errors(picture):
            write_overlay(figure, picture)
    except StorageError:
        raise
    except Exception as error:
        log.warning("%s: could not be drawn (%s: %s).", case_id, type(error).__name__, error)
        log.debug("%s", case_id, exc_info=error)
        return False
    return True


def _read_ahead(pairs: Sequence[tuple[RawCase, Path]]) -> Iterator[Read]:
    """Yield for each case the function that waits for its image and label map, while those of the next are read."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[tuple[Image, np.ndarray]]] = deque()
        for case, drawn in pairs:
            waiting.append(pool.submit(lambda case, drawn: (_image_of(case), read_label(drawn).array[0]), case, drawn))
            if len(waiting) > 1:
                yield waiting.popleft().result
        if waiting:
            yield waiting.popleft().result


def _image_of(case: RawCase) -> Image:
    return read_image(case.images, time_is_channels=True)


def _older(picture: Path, segmentation: Path) -> bool:
    return not picture.exists() or picture.stat().st_mtime_ns < segmentation.stat().st_mtime_ns
