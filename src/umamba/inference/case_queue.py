"""Many cases: read ahead of the networks and written behind them; a case that fails does not stop the others."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from umamba.datasets import RawCase
from umamba.inference.canvas import Canvas
from umamba.inference.memory import MemoryLimit
from umamba.inference.model import Model
from umamba.inference.postprocessing import PostProcessing
from umamba.inference.prepared_image import PreparedImage, paint, prepare_image, warn_of_orientation
from umamba.inference.probabilities import ProbabilitiesFile
from umamba.io import Geometry, StorageError, UserError, read_image, voxel_count, write_segmentation
from umamba.labels.instance_maps import numbered_instances
from umamba.settings import PredictionSettings


@dataclass(frozen=True)
class CaseFiles:
    """The files that the prediction of a case writes.

    Attributes:
        segmentation: the label map.
        probabilities: npz file; None: not wanted.
        instances: numbered instances; None: not wanted.
    """

    segmentation: Path
    probabilities: Path | None
    instances: Path | None

    @property
    def paths(self) -> tuple[Path | None, ...]:
        """All files in the order in which they are written, the segmentation last."""
        return self.probabilities, self.instances, self.segmentation

    def complete(self) -> bool:
        """Return whether all wanted files exist."""
        return all(path is None or path.exists() for path in self.paths)

    def remove(self) -> None:
        """Delete the files that exist."""
        for path in self.paths:
            if path is not None:
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class CaseQueue:
    """A queue of cases with the networks in the middle: reading threads before them, writing threads behind them.

    Attributes:
        models: the networks.
        post_processing: applied to each segmentation.
        settings: how images are segmented and how many threads read and write.
        limit: of the memory.
        progress: show a progress bar.
        orientations: of the images so far, see `warn_of_orientation`.
    """

    models: Sequence[Model]
    post_processing: PostProcessing
    settings: PredictionSettings
    limit: MemoryLimit
    progress: bool
    orientations: set[str] = field(default_factory=set)

    def run(self, cases: Sequence[RawCase], files: Sequence[CaseFiles]) -> dict[str, str]:
        """Segment the cases.

        Args:
            cases: image files and names.
            files: what is written for each case.

        Returns:
            The reason for each case (by `case_id`) that could not be segmented.

        Raises:
            StorageError: the results cannot be written. No further case is begun; the written ones are complete.
        """
        problems: dict[str, str] = {}
        writing: deque[tuple[str, Future[None]]] = deque()
        at_once = self._at_once(cases)

        def finish(limit: int) -> None:
            while len(writing) > limit:
                case_id, future = writing.popleft()
                with _noting(case_id, problems):
                    future.result()

        readers, writers = (ThreadPoolExecutor(self.settings.workers) for _ in range(2))
        try:
            with CaseProgress(len(cases), self.progress) as progress:
                for number, (case, read) in enumerate(_read_ahead(readers, self._read, cases, at_once)):
                    with _noting(case.case_id, problems):
                        writing.append((case.case_id, self._segment(read(), files[number], writers, progress.tiles)))
                    del read  # frees the image before the next one is read
                    finish(at_once)
                    progress.case()
                finish(0)
        finally:
            for pool in (readers, writers):
                pool.shutdown(cancel_futures=True)
        return problems

    def _at_once(self, cases: Sequence[RawCase]) -> int:
        """Return how many cases are read ahead, and as many written behind."""
        if self.limit.bytes is None:
            return self.settings.workers
        largest = max((voxel_count(case.images) for case in cases), default=0)
        return self.limit.cases_at_once(self.settings.workers, largest)

    def _read(self, case: RawCase) -> PreparedImage:
        turn_channels = self.models[0].plan.reader is not None
        return prepare_image(read_image(case.images, time_is_channels=True, turn_channels=turn_channels), self.models)

    def _segment(
        self,
        prepared: PreparedImage,
        files: CaseFiles,
        writers: ThreadPoolExecutor,
        progress: Callable[[int, int], None],
    ) -> "Future[None]":
        """Run the networks; return the future of resampling and writing."""
        labels, placement, geometry = self.models[0].labels, prepared.placement, prepared.geometry
        warn_of_orientation(files.segmentation.name, geometry, self.models, self.orientations)
        with ExitStack() as stack:
            probabilities = None
            if files.probabilities is not None:
                probabilities = ProbabilitiesFile(files.probabilities, (labels.num_classes, *placement.shape))
                stack.callback(probabilities.discard)
            canvas = Canvas(placement, labels, None if probabilities is None else probabilities.array)
            rest = paint(prepared, canvas, self.settings, self.limit, progress)
            stack = stack.pop_all()  # from here on the writing thread removes the temporary file
        return writers.submit(self._write, files, canvas, geometry, rest, probabilities, stack)

    def _write(
        self,
        files: CaseFiles,
        canvas: Canvas,
        geometry: Geometry,
        rest: Callable[[], None],
        probabilities: ProbabilitiesFile | None,
        stack: ExitStack,
    ) -> None:
        with stack:
            rest()
            if probabilities is not None:
                probabilities.save()
            segmentation = self.post_processing.apply(canvas.segmentation)
            if files.instances is not None and self.settings.instances is not None:
                write_segmentation(files.instances, numbered_instances(segmentation, self.settings.instances), geometry)
            write_segmentation(files.segmentation, segmentation, geometry)


@contextmanager
def _noting(case_id: str, problems: dict[str, str]) -> Iterator[None]:
    """Note a UserError of the block as the problem of a case; a StorageError ends the queue."""
    try:
        yield
    except StorageError:
        raise
    except UserError as error:
        problems[case_id] = str(error)


class CaseProgress:
    """A bar of the cases, and a second bar of the tiles of the case that the networks compute."""

    def __init__(self, cases: int, shown: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, disable=not shown)
        self._cases = self._progress.add_task("Predicting", total=cases)
        self._tiles = self._progress.add_task("  tiles", total=None)

    def __enter__(self) -> "CaseProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.remove_task(self._tiles)
        self._progress.stop()

    def case(self) -> None:
        """Count a case as done."""
        self._progress.advance(self._cases)

    def tiles(self, done: int, total: int) -> None:
        """Show how many tiles of the case are done."""
        self._progress.update(self._tiles, completed=done, total=total)


def _read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[RawCase], PreparedImage], cases: Sequence[RawCase], ahead: int
) -> Iterator[tuple[RawCase, Callable[[], PreparedImage]]]:
    """Yield each case with the function that waits for its image, while up to `ahead` more are read.

    The function is the only reference to the image, so that the caller can free it.
    """
    queue: deque[tuple[RawCase, Future[PreparedImage]]] = deque()
    for case in cases:
        queue.append((case, pool.submit(read, case)))
        if len(queue) > ahead:
            yield _taken(queue)
    while queue:
        yield _taken(queue)


def _taken(queue: "deque[tuple[RawCase, Future[PreparedImage]]]") -> tuple[RawCase, Callable[[], PreparedImage]]:
    case, future = queue.popleft()
    return case, future.result
