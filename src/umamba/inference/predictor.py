"""Segments images with one trained network or the mean of several; a folder is continued where an earlier call stopped.

Training's own predictions and `predict.py` both use this class, therefore they are equal voxel for voxel.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from umamba.datasets import RawCase
from umamba.inference.canvas import Canvas
from umamba.inference.case_classes import Probabilities, classify, classify_cases, forget_classes, named, read_classes
from umamba.inference.case_queue import CaseQueue, Watch, read_channels
from umamba.inference.cases import find_cases
from umamba.inference.checkpoints import find_checkpoints
from umamba.inference.engine import measures_nothing, settle_engines
from umamba.inference.engine_record import begun_engine, engines_record
from umamba.inference.exports import check_exports
from umamba.inference.label_files import write_label_files
from umamba.inference.likeness import refuse_flat_image
from umamba.inference.manifest import Manifest, setup_of
from umamba.inference.memory import measure_limit
from umamba.inference.model import Model, choose_device
from umamba.inference.outputs import CaseFiles, Outputs
from umamba.inference.postprocessing import PostProcessing
from umamba.inference.prepared_image import check_previous, paint, prepare_image, same_bits, warn_of_orientation
from umamba.inference.problems import Problems
from umamba.inference.same_images import kept_record, refuse_other_classes, refuse_other_images
from umamba.inference.volumes import write_volumes
from umamba.io import Image, UserError, exclusive, storage_errors
from umamba.io.voice import shown
from umamba.labels import LabelSet
from umamba.labels.case_classes import CaseHeads
from umamba.labels.codes import label_codes
from umamba.labels.instance_depth import level_count
from umamba.labels.instance_maps import BOUNDARY, COMPONENTS, INTERIOR
from umamba.settings import PredictionSettings

log = logging.getLogger(__name__)

DEFAULTS = PredictionSettings()
NOBODY: Mapping[str, Watch] = {}  # watches
# Names of a second label that say that it is the boundary of the first.
_BOUNDARY_NAME = re.compile("bound|border|contour|edge|membrane|outline", re.IGNORECASE)


@dataclass
class Predictor:
    """One network or several with all that is needed to segment images in their own space.

    Several networks decide by the mean of their probabilities; they may differ in architecture and plan.

    Attributes:
        models: the networks, of one label set and number of channels, on one device.
        post_processing: applied to every segmentation.

    Raises:
        UserError: the networks differ in labels, number of channels or classes of whole cases.

    A trained network is read by `Predictor.from_checkpoint("last.ckpt")`. This one is not trained:

    >>> from umamba.io import Geometry
    >>> from umamba.networks import build_network, configuration_for_patch
    >>> from umamba.planning import Plan
    >>> configuration = configuration_for_patch((16, 16))
    >>> axes, spacing = (0, 1, 2), (1.0, 1.0, 1.0)
    >>> plan = Plan("Dataset001_Example", "nnunet", axes, axes, spacing, (1.0, 16.0, 16.0), (), {"2d": configuration})
    >>> network = build_network("unet", configuration, in_channels=1, num_classes=2)
    >>> model = Model(network, plan, configuration, LabelSet(("organ",), ((1,),)), 1, choose_device("cpu"))
    >>> geometry = Geometry(spacing, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), (3, 20, 24), False)
    >>> image = Image(np.ones((1, 3, 20, 24), dtype=np.float32), geometry)
    >>> Predictor((model,)).predict_image(image, PredictionSettings(tile_step_size=1.0)).shape
    (3, 20, 24)
    """

    models: tuple[Model, ...]
    post_processing: PostProcessing = field(default_factory=PostProcessing)

    def __post_init__(self) -> None:
        first = self.models[0]
        for other in self.models[1:]:
            for name in ("labels", "num_channels", "heads"):
                if getattr(other, name) != getattr(first, name):
                    raise UserError(
                        f"checkpoint: the networks differ in {name}, {getattr(first, name)} and "
                        f"{getattr(other, name)}. Train those of an ensemble for the same labels, channels and classes."
                    )

    @classmethod
    def from_checkpoint(
        cls,
        checkpoints: Path | str | Sequence[Path | str],
        device: str = "auto",
        precision: str = "auto",
        post_processing: PostProcessing | None = None,
        trust: str | Sequence[str] = (),
        engine: str = "auto",
        reproducible: bool = False,
        tile_scale: int = 1,
    ) -> "Predictor":
        """Build the network of a checkpoint, or those of several; nothing else is needed.

        Args:
            checkpoints: a checkpoint of a run, of nnU-Net or of U-Mamba, a results folder of these two, or the folder
                of a run or of an experiment with several folds; or several of them. Several networks decide by the
                mean of their probabilities.
            device: auto (CUDA where there is a GPU, else the CPU), cpu, cuda, cuda:1, ...
            precision: Lightning's name, 32-true, bf16-mixed or 16-mixed; auto: what the device computes fast.
            post_processing: applied to every segmentation; None: nothing.
            trust: packages whose functions may build a network, such as "mypackage"; this project's need no trust.
            engine: what computes the networks: torch; openvino (on the CPU); auto: torch on a GPU, the faster one on a
                CPU (see `umamba.inference.engine`).
            reproducible: the same bits for any number of threads and any memory, on the CPU (see `Model`).
            tile_scale: edge of a tile in patches of training (see `Model`).

        Raises:
            UserError: a file is no such checkpoint, or its weights do not fit the network that it names, or that
                network is built by code that is not trusted; the networks do not fit together; the device, precision or
                engine cannot be used.
        """
        paths = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
        if not paths:
            raise UserError("checkpoint: none is given. Give one, or several as checkpoint=[a.ckpt,b.ckpt].")
        chosen = choose_device("cpu" if (engine == "openvino" or reproducible) and device == "auto" else device)
        files = find_checkpoints([Path(path) for path in paths])
        options = chosen, precision, trust, engine, reproducible, tile_scale
        models = tuple(Model.from_checkpoint(path, *options) for path in files)
        return cls(models, post_processing or PostProcessing())

    @property
    def labels(self) -> LabelSet:
        """The label set."""
        return self.models[0].labels

    @property
    def heads(self) -> CaseHeads | None:
        """What the networks answer about a whole case; None: they segment only."""
        return self.models[0].heads

    @property
    def classifies_only(self) -> bool:
        """Whether the networks were trained for classes alone, so that they segment nothing."""
        return self.heads is not None and self.heads.alone

    @property
    def num_channels(self) -> int:
        """Channels of an image."""
        return self.models[0].num_channels

    @property
    def file_ending(self) -> str:
        """Ending of the segmentations that are written."""
        return self.models[0].file_ending

    def predict_image(
        self, image: Image, settings: PredictionSettings = DEFAULTS, previous: Image | None = None
    ) -> np.ndarray:
        """Segment one image in memory.

        Args:
            image: the image, (C, Z, Y, X) with its spacing in mm.
            settings: tile_step_size, tta and max_memory_gb; the others concern files and are not used here.
            previous: for cascades: the segmentation by the first stage (1, Z, Y, X) on the grid of the image.

        Returns:
            The label map (Z, Y, X) on the image's own grid, in the smallest unsigned integer type.

        Raises:
            UserError: the image does not fit the network, the memory does not suffice, or logits are not finite.
        """
        if self.classifies_only:
            raise UserError("checkpoint: was trained for classes alone (heads.alone=true). Use classify_image instead.")
        refuse_flat_image(image, self.models)
        settle_engines(self.models)
        limit = measure_limit(settings.max_memory_gb, self.models, settings.tta)
        with same_bits(self.models):
            prepared = prepare_image(image, self.models, previous=previous)
        warn_of_orientation("The image", prepared.geometry, self.models, set())
        canvas = Canvas(prepared.placement, self.labels)
        paint(prepared, canvas, settings, limit, lambda done, total: None)()
        return self.post_processing.apply(canvas.segmentation)

    def classify_image(self, image: Image, settings: PredictionSettings = DEFAULTS) -> dict[str, dict[str, float]]:
        """Classify one image in memory.

        Args:
            image: the image, (C, Z, Y, X) with its spacing in mm.
            settings: tta is read.

        Returns:
            Task -> class -> probability.

        Raises:
            UserError: the networks have no classification head, or the image does not fit them.
        """
        if self.heads is None:
            raise UserError("checkpoint: has no classification head. Train one with heads.case=FILE.csv.")
        refuse_flat_image(image, self.models)
        with same_bits(self.models):
            prepared = prepare_image(image, self.models)
        return named(self.heads.tasks, classify(prepared, self.models, settings.tta))

    def predict(
        self,
        input: Path | str,
        output: Path | str,
        settings: PredictionSettings = DEFAULTS,
        *,
        progress: bool = True,
        watch: Mapping[str, Watch] = NOBODY,
    ) -> list[Path]:
        """Segment a file, a DICOM series or all images of a folder into output/NAME<file_ending>.

        Networks with a classification head also write classes.csv; those trained for classes alone write nothing else.

        Args:
            input: an image, or a folder of images; `list_cases` says how files make a case.
            output: folder of the segmentations, made if missing; or a file, such as seg.nii.gz, for a single image.
            settings: see `predict_cases`.
            progress: show a progress bar.
            watch: case_id -> function that receives the image and its segmentation (cells, if asked for) before this is
                written. Not called with max_memory_gb, because the image stays in memory until then.

        Returns:
            The segmentations of all cases in the order of their names, those of earlier calls included.

        Raises:
            UserError: there are no images, the output is a file and there are several, or as in `predict_cases`.
        """
        outputs = Outputs.at(Path(output), self.file_ending)
        if os.path.realpath(input) == os.path.realpath(outputs.folder):
            raise UserError(
                f"output={output}: is the folder of the images, so that the next command would take segmentations for "
                "images. Give another folder."
            )
        cases, problems = find_cases(Path(input), self.num_channels)
        if outputs.only is not None and len(cases) + len(problems) > 1:
            raise UserError(
                f"output={output}: is a file, but {input} holds {len(cases) + len(problems)} images. Give a folder."
            )
        return self._predict(cases, outputs, settings, progress, problems, watch)

    def predict_cases(
        self,
        cases: Sequence[RawCase],
        output: Path,
        settings: PredictionSettings = DEFAULTS,
        *,
        progress: bool = True,
    ) -> list[Path]:
        """Segment cases into output/<case_id><file_ending>; threads read and write beside the network.

        Names and colours of the labels (labels_itksnap.txt, labels_slicer.ctbl) and volumes.csv are written, too.

        Args:
            cases: image files and names.
            output: folder of the segmentations; made if missing.
            settings: layout of the tiles, memory, further outputs, number of threads. `overwrite` segments every case
                again, else only those whose files are missing.
            progress: show a progress bar, and messages if nothing shows them yet.

        Returns:
            The segmentations of all cases in their order, those of earlier calls included.

        Raises:
            UserError: the folder holds segmentations of another network or other settings, or files that no prediction
                made; instances are asked of a network without interior and boundary; or, after all other cases are
                done, the list of cases that could not be segmented, each with its reason.
            StorageError: the output cannot be written; the files that were written before are complete.
        """
        return self._predict(cases, Outputs(Path(output), self.file_ending), settings, progress, {})

    def _predict(
        self,
        cases: Sequence[RawCase],
        outputs: Outputs,
        settings: PredictionSettings,
        progress: bool,
        unusable: Mapping[str, str],
        watch: Mapping[str, Watch] = NOBODY,
    ) -> list[Path]:
        """Segment cases; `unusable` are further cases that cannot be read, each with its reason."""
        self._check(settings)
        codes = label_codes(self.labels, settings.codes)
        names = [case.case_id for case in cases]
        files = [outputs.case(name, settings) for name in names]
        _spare_images(cases, files)
        folder = outputs.folder
        problems = Problems(outputs.tracebacks)
        problems.reasons.update(unusable)
        if unusable and not cases:
            raise problems.error(len(unusable), folder)
        with ExitStack() as stack:
            stack.enter_context(shown(progress))
            stack.enter_context(same_bits(self.models))
            with storage_errors(folder):
                stack.enter_context(exclusive(outputs.lock, f"the predictions in {folder}"))
                outputs.remove_stale(files)
                record = self._record(settings)
                before, manifest = self._what_is_there(cases, files, outputs, settings, record)
                missing = [number for number, own in enumerate(files) if settings.overwrite or not own.complete()]
                missing = [] if self.classifies_only else missing
            ahead: dict[str, Future[Image]] = {}
            if missing:
                begun = begun_engine(before, outputs.record, self.models, overwrite=settings.overwrite)
                ahead = self._settle_engines(begun, cases[missing[0]], settings)
            with storage_errors(folder):
                if settings.overwrite:
                    self._remove(names, outputs, keep_common=before is not None)
                if missing or before is None or self.classifies_only:
                    manifest.use(setup_of(self.models, settings, self.post_processing))
                    record |= engines_record(before, self.models)
                    outputs.claim(record | self._sources() | manifest.content())
                    outputs.journal.unlink(missing_ok=True)  # its entries stand in the record now
                outputs.tracebacks.unlink(missing_ok=True)
            if self.classifies_only:
                classify_cases(cases, self.models, outputs.classes, {}, problems, settings.tta, manifest)
                with storage_errors(folder):
                    outputs.claim(record | self._sources() | manifest.content())
                    outputs.journal.unlink(missing_ok=True)
                if problems.reasons:
                    raise problems.error(len(cases) + len(unusable), folder)
                return []
            write_label_files(outputs.itksnap_labels, outputs.slicer_labels, self.labels)
            if len(missing) < len(cases):
                log.info(
                    "%d of %d segmentations were there already, in %s", len(cases) - len(missing), len(cases), folder
                )
            volumes: dict[str, list[dict[str, str]]] = {}
            classes: dict[str, Probabilities] = {}
            if missing:
                limit = measure_limit(settings.max_memory_gb, self.models, settings.tta)
                setup = self.models, self.post_processing, settings, limit, progress, problems, codes, manifest
                queue = CaseQueue(*setup, ahead=ahead, watch=watch)
                volumes = queue.run([cases[number] for number in missing], [files[number] for number in missing])
                classes = queue.classes
                with storage_errors(folder):
                    outputs.claim(record | self._sources() | manifest.content())
                    outputs.journal.unlink(missing_ok=True)
            segmentations = [(case.case_id, own.segmentation) for case, own in zip(cases, files, strict=True)]
            if self.heads is not None:
                segmented = [case for case, own in zip(cases, files, strict=True) if own.segmentation.exists()]
                classify_cases(segmented, self.models, outputs.classes, classes, problems, settings.tta)
            others = manifest.other_cases(names)
            segmentations += [(case_id, outputs.case(case_id, DEFAULTS).segmentation) for case_id in others]
            write_volumes(outputs.volumes, segmentations, volumes, self.labels, problems)
        if problems.reasons:
            raise problems.error(len(cases) + len(unusable), folder)
        return [own.segmentation for own in files]

    def _what_is_there(
        self,
        cases: Sequence[RawCase],
        files: Sequence[CaseFiles],
        outputs: Outputs,
        settings: PredictionSettings,
        record: Mapping[str, Any],
    ) -> tuple[dict[str, Any] | None, Manifest]:
        """Return the record and the entries of the results that stay; refuse those of other images or networks."""
        names = [case.case_id for case in cases]
        if settings.overwrite:
            before = kept_record(outputs, record, names)
            manifest = Manifest(outputs, before)
            manifest.forget(names)
            return before, manifest
        before = outputs.earlier(record, files)
        manifest = Manifest(outputs, before)
        refuse_other_images(cases, files, outputs, manifest, self.models[0], settings.previous_stage)
        if self.classifies_only and self.heads is not None:
            rows = read_classes(outputs.classes, self.heads.tasks)
            refuse_other_classes(cases, rows, outputs, manifest, self.models[0])
        return before, manifest

    def _remove(self, names: Sequence[str], outputs: Outputs, *, keep_common: bool) -> None:
        """Delete the files of cases that are segmented again; tables that other cases need lose their rows only."""
        for name in names:
            outputs.remove(name)
        if not keep_common:
            outputs.remove_common()
        elif self.heads is not None:
            forget_classes(outputs.classes, self.heads.tasks, names)

    def _settle_engines(
        self, begun: str | None, first: RawCase, settings: PredictionSettings
    ) -> dict[str, Future[Image]]:
        """Choose and compile the engines; read the first image beside it, if that disturbs no measurement."""
        ahead: dict[str, Future[Image]] = {}
        with ThreadPoolExecutor(1) as reader:
            if settings.max_memory_gb is None and measures_nothing(self.models, begun):
                ahead[first.case_id] = reader.submit(read_channels, first, self.models[0])
            settle_engines(self.models, begun)
        return ahead

    def _check(self, settings: PredictionSettings) -> None:
        """Refuse what these networks cannot give, before any image is read."""
        self._check_instances(settings.instances)
        check_previous(self.models, "" if settings.previous_stage is None else "previous_stage")
        segments = settings.export or settings.probabilities or settings.instances or settings.agreement
        if self.classifies_only and segments:
            raise UserError(
                "export, probabilities, instances, agreement, quality: the network was trained for classes alone "
                "(heads.alone=true) and segments nothing. Leave them away."
            )
        check_exports(settings.export, self.models)

    def _check_instances(self, method: str | None) -> None:
        if method is None:
            return
        names = ", ".join(self.labels.names)
        if level_count(self.labels):
            if method == COMPONENTS:
                raise UserError(
                    f"instances={method}: is for interior and boundary, but this network has {names}. Give "
                    "instances=watershed."
                )
            return
        if self.labels.values != ((INTERIOR,), (BOUNDARY,)) or not _BOUNDARY_NAME.search(self.labels.names[1]):
            raise UserError(
                f"instances={method}: is for cells, and needs a network of two labels, {INTERIOR} the interior and "
                f"{BOUNDARY} the boundary, named so, or of levels of depth; this one has {names}. Leave instances away."
            )

    def _sources(self) -> dict[str, Any]:
        """Return where the checkpoints are, which `umamba verify` reads again; empty for networks that have none."""
        sources = [os.path.abspath(model.source) for model in self.models if model.source is not None]
        names = [os.fsencode(path).decode("utf-8", "replace") for path in sources]
        return {"checkpoints": names} if len(names) == len(self.models) else {}

    def _record(self, settings: PredictionSettings) -> dict[str, Any]:
        """Return what the segmentations in a folder depend on beside the images."""
        identities = [model.identity for model in self.models]
        record: dict[str, Any] = {
            "network": identities[0] if len(identities) == 1 else identities,
            "tile_step_size": settings.tile_step_size,
            "tta": settings.tta,
        }
        if self.post_processing.steps:
            record["post_processing"] = [list(step) for step in self.post_processing.steps]
        if settings.instances is not None:
            record["instances"] = settings.instances
        if settings.previous_stage is not None:
            record["previous_stage"] = os.path.abspath(settings.previous_stage)
        if any(model.tile_scale != 1 for model in self.models):
            record["tile_scale"] = [model.tile_scale for model in self.models]
        if any(model.reproducible for model in self.models):
            record["reproducible"] = True
        return record


def _spare_images(cases: Sequence[RawCase], files: Sequence[CaseFiles]) -> None:
    """Refuse an output that is one of the images, also through a link."""
    inputs = {os.path.realpath(path) for case in cases for path in case.images}
    for own in files:
        if os.path.realpath(own.segmentation) in inputs:
            raise UserError(f"output: {own.segmentation} is one of the images. Give another folder or file.")
