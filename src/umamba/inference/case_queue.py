"""Many cases: read ahead of the networks and written behind them; a case that fails does not stop the others."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from umamba.datasets import RawCase
from umamba.inference.agreement import Agreement, CaseSigns, further_views
from umamba.inference.canvas import Canvas
from umamba.inference.case_classes import Probabilities, classify
from umamba.inference.digests import image_digest
from umamba.inference.exports import check_image_exports, check_segmentation_file, write_exports
from umamba.inference.likeness import Unlike, distances, refuse_flat_image, unlike_training
from umamba.inference.manifest import Manifest
from umamba.inference.memory import MemoryLimit
from umamba.inference.model import Model
from umamba.inference.outputs import CaseFiles, wants_dicom
from umamba.inference.postprocessing import PostProcessing
from umamba.inference.prepared_image import PreparedImage, paint, prepare_image, warn_of_orientation
from umamba.inference.probabilities import ProbabilitiesFile
from umamba.inference.problems import IncompleteCase, Problems
from umamba.inference.progress import CaseProgress
from umamba.inference.volumes import volume_rows
from umamba.io import (
    Geometry,
    Image,
    UserError,
    read_image,
    read_label,
    storage_errors,
    turned,
    voxel_count,
    write_json,
    write_segmentation,
)
from umamba.io.orientation import AS_STORED
from umamba.labels.codes import LabelCode
from umamba.labels.instance_maps import grouped_instances
from umamba.settings import PredictionSettings

# What receives an image as read and its label map or numbered cells (Z, Y, X), before these are written.
Watch = Callable[[Image, np.ndarray], None]


@dataclass(frozen=True)
class Read:
    """An image that was read.

    Attributes:
        prepared: the image as the networks see it.
        differences: how it differs from those of training, in sentences.
        digest: its hash.
        distances: how far it is from those of training; empty: not wanted.
        image: as read, where somebody watches; else None, so that it takes no memory.
    """

    prepared: PreparedImage
    differences: Sequence[str]
    digest: str
    distances: Mapping[str, float]
    image: Image | None = None


def previous_file(folder: Path | None, case_id: str, model: Model) -> Path | None:
    """Return the file of the segmentation by the first stage of a cascade, which may be missing.

    Args:
        folder: where it is; None: no network needs one.
        case_id: name of the case.
        model: a network of the second stage.
    """
    return None if folder is None else folder / f"{case_id}{model.file_ending}"


def read_channels(case: RawCase, model: Model) -> Image:
    """Read the image files of a case as a network wants them.

    Args:
        case: its files.
        model: the network; its plan says whether channels are turned to the axes of the patient.

    Raises:
        UserError: a file cannot be read, or the channels do not fit together.
    """
    return read_image(case.images, time_is_channels=True, turn_channels=model.plan.reader is not None)


@dataclass(frozen=True)
class CaseQueue:
    """A queue of cases with the networks in the middle: reading threads before them, writing threads behind them.

    Attributes:
        models: the networks.
        post_processing: applied to each segmentation.
        settings: how images are segmented and how many threads read and write.
        limit: of the memory.
        progress: show a progress bar.
        problems: receives the reason for each case that cannot be segmented.
        codes: the coded name of each label, for the forms in DICOM.
        manifest: receives an entry for each case before its segmentation is written.
        orientations: of the images so far, see `warn_of_orientation`.
        classes: receives the probabilities of the classes of each case, if the networks have a classification head.
        ahead: by case_id, the images that are being read already.
        watch: by case_id, see `Watch`. Such an image stays in memory until then; with a limit of the memory nothing is
            watched.
    """

    models: Sequence[Model]
    post_processing: PostProcessing
    settings: PredictionSettings
    limit: MemoryLimit
    progress: bool
    problems: Problems
    codes: Sequence[LabelCode]
    manifest: Manifest
    orientations: set[str] = field(default_factory=set)
    classes: dict[str, Probabilities] = field(default_factory=dict)
    ahead: dict[str, Future[Image]] = field(default_factory=dict)
    watch: Mapping[str, Watch] = field(default_factory=dict)

    def run(self, cases: Sequence[RawCase], files: Sequence[CaseFiles]) -> dict[str, list[dict[str, str]]]:
        """Segment the cases. Whatever ends a case is one of `problems`, and the others are segmented.

        Args:
            cases: image files and names.
            files: what is written for each case.

        Returns:
            The rows of `volume_rows` of each case (by `case_id`) that was segmented.

        Raises:
            StorageError: the results cannot be written. No further case is begun; the written ones are complete.
        """
        volumes: dict[str, list[dict[str, str]]] = {}
        unlike = Unlike(cases)
        writing: deque[tuple[str, Future[list[dict[str, str]]]]] = deque()
        at_once = self._at_once(cases)
        targets = {case.case_id: own.segmentation for case, own in zip(cases, files, strict=True)}
        read_case = partial(self._read, targets)

        def finish(limit: int) -> None:
            while len(writing) > limit:
                case_id, future = writing.popleft()
                with self.problems.noting(case_id):
                    volumes[case_id] = future.result()

        readers, writers = (ThreadPoolExecutor(self.settings.workers) for _ in range(2))
        try:
            with CaseProgress(len(cases), self.progress) as progress:
                for number, (case, read) in enumerate(_read_ahead(readers, read_case, cases, at_once)):
                    with self.problems.noting(case.case_id):
                        future = self._segment(case, read, files[number], writers, progress, unlike)
                        writing.append((case.case_id, future))
                    del read  # frees the image before the next one is read
                    finish(at_once)
                    progress.case()
                finish(0)
        finally:
            for pool in (readers, writers):
                pool.shutdown(cancel_futures=True)
        unlike.summary()
        return volumes

    def _at_once(self, cases: Sequence[RawCase]) -> int:
        """Return how many cases are read ahead, and as many written behind."""
        if self.limit.bytes is None:
            return self.settings.workers
        largest = 0
        for case in cases:
            with suppress(Exception):  # reading it will name the fault
                largest = max(largest, voxel_count(case.images))
        return self.limit.cases_at_once(self.settings.workers, largest)

    def _read(self, targets: Mapping[str, Path], case: RawCase) -> Read:
        """Read and prepare an image; refuse what would fail after the work. `targets`: case_id -> segmentation."""
        begun = self.ahead.pop(case.case_id, None)
        image = read_channels(case, self.models[0]) if begun is None else begun.result()
        del begun  # it would keep the image
        refuse_flat_image(image, self.models)
        check_segmentation_file(targets[case.case_id], image.geometry)
        check_image_exports(self.settings.export, image.geometry)
        if wants_dicom(self.settings.export):
            from umamba.inference.dicom_results import check_dicom_exports  # pydicom takes a while to load

            check_dicom_exports(self.settings.export, case.images)
        path = previous_file(self.settings.previous_stage, case.case_id, self.models[0])
        if path is not None and not path.exists():
            raise UserError(
                f"{path}: the segmentation by the previous stage is missing. Predict the image with it first."
            )
        previous = None if path is None else read_label(path)
        prepared = prepare_image(image, self.models, case.case_id, previous)
        turn = prepared.placement.turn
        seen = image if turn == AS_STORED else turned(image, turn)
        crop, model = prepared.placement.crop, self.models[0]
        far: dict[str, float] = {}
        if self.settings.agreement:
            prepared = replace(prepared, further=further_views(prepared.views, self.settings.tile_step_size))
            far = distances(seen, crop, model)
        kept = image if case.case_id in self.watch and self.limit.bytes is None else None
        return Read(prepared, unlike_training(seen, crop, model), image_digest(image, previous), far, kept)

    def _segment(
        self,
        case: RawCase,
        read: Callable[[], Read],
        files: CaseFiles,
        writers: ThreadPoolExecutor,
        progress: CaseProgress,
        unlike: Unlike,
    ) -> "Future[list[dict[str, str]]]":
        """Wait for the image and run the networks; return the future of resampling and writing."""
        found = read()
        prepared, image, watched = found.prepared, found.digest, found.image
        unlike.add(case.case_id, found.differences)
        labels, placement, geometry = self.models[0].labels, prepared.placement, prepared.geometry
        warn_of_orientation(case.case_id, geometry, self.models, self.orientations)
        if self.models[0].heads is not None:
            self.classes[case.case_id] = classify(prepared, self.models, self.settings.tta)
        with ExitStack() as stack:
            probabilities = None
            if files.probabilities is not None:
                probabilities = ProbabilitiesFile(files.probabilities, (labels.num_classes, *placement.shape))
                stack.callback(probabilities.discard)
            canvas = Canvas(placement, labels, None if probabilities is None else probabilities.array)
            agreement = None
            if files.agreement is not None:
                views = len(prepared.views) + len(prepared.further)
                agreement = Agreement(labels, len(prepared.views), views)
            rest = paint(prepared, canvas, self.settings, self.limit, progress.tiles, agreement)
            stack = stack.pop_all()  # from here on the writing thread removes the temporary file
        sign = None if agreement is None else partial(self._write_signs, agreement, found.distances, found.differences)
        del found, prepared  # the image is not needed any more
        written = case, image, watched, files, canvas, geometry, rest, probabilities, sign, stack
        future = writers.submit(self._write, *written)
        future.add_done_callback(lambda done: stack.close())  # also if it was cancelled before it began
        return future

    def _write(
        self,
        case: RawCase,
        image: str,
        watched: Image | None,
        files: CaseFiles,
        canvas: Canvas,
        geometry: Geometry,
        rest: Callable[[], None],
        probabilities: ProbabilitiesFile | None,
        write_signs: Callable[[Path], None] | None,
        stack: ExitStack,
    ) -> list[dict[str, str]]:
        """Resample, decide and write; return the rows of the volumes. `image` is its hash.

        The segmentation is the last file, so that a case that is killed before is begun again; forms of `export` that
        cannot be written are no reason to lose it.
        """
        labels = self.models[0].labels
        with stack:
            rest()
            if probabilities is not None:
                probabilities.save()
            segmentation = self.post_processing.apply(canvas.segmentation)
            numbered = None
            if files.instances is not None and self.settings.instances is not None:
                numbered = grouped_instances(segmentation, labels, self.settings.instances)
                write_segmentation(files.instances, numbered, geometry)
            unwritten = write_exports(files.exports, segmentation, numbered, geometry, labels, case.images)
            if wants_dicom(self.settings.export):
                from umamba.inference.dicom_objects import Maker
                from umamba.inference.dicom_results import write_dicom_exports

                maker = Maker.of(self.models)
                written = files.exports, segmentation, labels, self.codes, case.images, maker
                unwritten += write_dicom_exports(*written)
            if watched is not None:
                self.watch[case.case_id](watched, segmentation if numbered is None else numbered)
            if write_signs is not None and files.agreement is not None:
                write_signs(files.agreement)
            self.manifest.note(case.case_id, case.images, image, segmentation)
            write_segmentation(files.segmentation, segmentation, geometry)
        if unwritten:
            raise IncompleteCase(f"{files.segmentation} is written, but not all of its exports: {' '.join(unwritten)}")
        return volume_rows(case.case_id, segmentation, geometry, labels)

    def _write_signs(
        self, agreement: Agreement, far: Mapping[str, float], differences: Sequence[str], path: Path
    ) -> None:
        """Write the signs of how far to trust a segmentation, after the logits of all views were counted."""
        views: Literal["networks", "one network"] = "networks" if len(self.models) > 1 else "one network"
        found = CaseSigns(views, len(self.models), agreement.signs(), far, tuple(differences))
        with storage_errors(path):
            write_json(path, found.to_json())


def _read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[RawCase], Read], cases: Sequence[RawCase], ahead: int
) -> Iterator[tuple[RawCase, Callable[[], Read]]]:
    """Yield each case with the function that waits for its image, while up to `ahead` more are read.

    The function is the only reference to the image, so that the caller can free it.
    """
    queue: deque[tuple[RawCase, Future[Read]]] = deque()
    for case in cases:
        queue.append((case, pool.submit(read, case)))
        if len(queue) > ahead:
            yield _taken(queue)
    while queue:
        yield _taken(queue)


def _taken(queue: "deque[tuple[RawCase, Future[Read]]]") -> tuple[RawCase, Callable[[], Read]]:
    case, future = queue.popleft()
    return case, future.result
