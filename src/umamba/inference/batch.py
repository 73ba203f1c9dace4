"""Many cases: read ahead and written behind the networks, the good ones finished whatever happens to the others."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from umamba.datasets import RawCase
from umamba.inference.export import Canvas
from umamba.inference.model import Model
from umamba.inference.postprocessing import PostProcessing
from umamba.inference.probabilities import ProbabilitiesFile
from umamba.inference.segment import Prepared, Settings, paint, prepare_image
from umamba.io import Geometry, StorageError, UserError, read_image, voxel_count, write_segmentation
from umamba.labels.instance_maps import numbered_instances


@dataclass(frozen=True)
class Target:
    """Where a case's results go: its segmentation and, if they are wanted, its probabilities and numbered instances."""

    segmentation: Path
    probabilities: Path | None
    instances: Path | None

    @property
    def paths(self) -> tuple[Path | None, ...]:
        """All of them, the segmentation last, as they are written."""
        return self.probabilities, self.instances, self.segmentation

    def complete(self) -> bool:
        """Whether all of them are there."""
        return all(path is None or path.exists() for path in self.paths)

    def remove(self) -> None:
        """Remove what is there."""
        for path in self.paths:
            if path is not None:
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Batch:
    """What is done to each case.

    Attributes:
        models: the networks.
        post_processing: applied to each segmentation.
        instances: how segmentations become numbered instances (`numbered_instances`); None: they do not.
        settings: how images are gone through.
        workers: threads that read and preprocess, and as many that resample and write.
    """

    models: Sequence[Model]
    post_processing: PostProcessing
    instances: str | None
    settings: Settings
    workers: int

    def run(self, cases: Sequence[RawCase], targets: Sequence[Target]) -> dict[str, str]:
        """Segment the cases; return the reason of each that could not be.

        Raises:
            StorageError: the results cannot be written. No further case is begun, those written are complete.
        """
        problems: dict[str, str] = {}
        writing: deque[tuple[str, Future[None]]] = deque()
        at_once = self._at_once(cases)

        def finish(limit: int) -> None:
            while len(writing) > limit:
                case_id, future = writing.popleft()
                with _noting(case_id, problems):
                    future.result()

        readers, writers = ThreadPoolExecutor(self.workers), ThreadPoolExecutor(self.workers)
        try:
            with CaseProgress(len(cases)) as progress:
                for number, (case, read) in enumerate(_read_ahead(readers, self._read, cases, at_once)):
                    with _noting(case.case_id, problems):
                        writing.append((case.case_id, self._segment(read(), targets[number], writers, progress.tiles)))
                    del read  # and with it the image, before the next one is read
                    finish(at_once)
                    progress.case()
                finish(0)
        finally:
            for pool in (readers, writers):
                pool.shutdown(cancel_futures=True)
        return problems

    def _at_once(self, cases: Sequence[RawCase]) -> int:
        """Return how many cases are read ahead, and as many written behind."""
        if self.settings.limit.bytes is None:
            return self.workers
        largest = max((voxel_count(case.images) for case in cases), default=0)
        return self.settings.limit.cases_at_once(self.workers, largest)

    def _read(self, case: RawCase) -> Prepared:
        return prepare_image(read_image(case.images, time_is_channels=True), self.models)

    def _segment(
        self,
        prepared: Prepared,
        target: Target,
        writers: ThreadPoolExecutor,
        progress: Callable[[int, int], None],
    ) -> "Future[None]":
        """Run the networks; return the future of resampling and writing."""
        labels, placement, geometry = self.models[0].labels, prepared.placement, prepared.geometry
        with ExitStack() as stack:
            file = None
            if target.probabilities is not None:
                file = ProbabilitiesFile(target.probabilities, (labels.num_classes, *placement.shape))
                stack.callback(file.discard)
            canvas = Canvas(placement, labels, None if file is None else file.array)
            rest = paint(prepared, canvas, self.settings, progress)
            stack = stack.pop_all()  # from here on the writer tidies up
        return writers.submit(self._write, target, canvas, geometry, rest, file, stack)

    def _write(
        self,
        target: Target,
        canvas: Canvas,
        geometry: Geometry,
        rest: Callable[[], None],
        file: ProbabilitiesFile | None,
        stack: ExitStack,
    ) -> None:
        with stack:
            rest()
            if file is not None:
                file.save()
            segmentation = self.post_processing.apply(canvas.segmentation)
            if target.instances is not None and self.instances is not None:
                write_segmentation(target.instances, numbered_instances(segmentation, self.instances), geometry)
            write_segmentation(target.segmentation, segmentation, geometry)


class _noting:
    """Notes a UserError of the block as the problem of a case; lets a StorageError through."""

    def __init__(self, case_id: str, problems: dict[str, str]) -> None:
        self.case_id, self.problems = case_id, problems

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError) and not isinstance(error, StorageError):
            self.problems[self.case_id] = str(error)
            return True
        return False


class CaseProgress:
    """A bar of the cases, and one of the tiles of the case that the networks are at."""

    def __init__(self, cases: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns)
        self._cases = self._progress.add_task("Predicting", total=cases)
        self._tiles = self._progress.add_task("  tiles", total=None)

    def __enter__(self) -> "CaseProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.remove_task(self._tiles)
        self._progress.stop()

    def case(self) -> None:
        """A case is done."""
        self._progress.advance(self._cases)

    def tiles(self, done: int, total: int) -> None:
        """So many tiles of the case are done."""
        self._progress.update(self._tiles, completed=done, total=total)


def _read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[RawCase], Prepared], cases: Sequence[RawCase], ahead: int
) -> Iterator[tuple[RawCase, Callable[[], Prepared]]]:
    """Yield each case with what waits for its content, with up to `ahead` more being read; nothing else holds it."""
    queue: deque[tuple[RawCase, Future[Prepared]]] = deque()
    for case in cases:
        queue.append((case, pool.submit(read, case)))
        if len(queue) > ahead:
            yield _taken(queue)
    while queue:
        yield _taken(queue)


def _taken(queue: "deque[tuple[RawCase, Future[Prepared]]]") -> tuple[RawCase, Callable[[], Prepared]]:
    case, future = queue.popleft()
    return case, future.result
