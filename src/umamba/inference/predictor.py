"""Segments images with one trained network or the mean of several; a folder is continued where it stopped.

    predictor = Predictor.from_checkpoint("last.ckpt")
    predictor.predict("images", "segmentations")

Training's own predictions and `predict.py` both come through this class, so that they are equal voxel for voxel.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from umamba.datasets import RawCase
from umamba.inference.batch import Batch, Target
from umamba.inference.cases import list_cases
from umamba.inference.export import Canvas
from umamba.inference.memory import MemoryLimit
from umamba.inference.model import Model, choose_device
from umamba.inference.postprocessing import PostProcessing
from umamba.inference.segment import Settings, paint, prepare_image
from umamba.io import (
    Image,
    UserError,
    exclusive,
    read_json,
    remove_stale,
    storage_errors,
    write_json,
)
from umamba.labels import LabelSet
from umamba.labels.instance_maps import BOUNDARY, INTERIOR, METHODS

_SETTINGS = "prediction.json"
_LOCK = ".prediction.lock"


@dataclass
class Predictor:
    """Networks with all that is needed to segment images in their own space; several give the mean of their
    probabilities, and may differ in architecture and plan.

    Attributes:
        models: the networks, of one label set and number of channels, on one device.
        post_processing: applied to every segmentation.
    """

    models: tuple[Model, ...]
    post_processing: PostProcessing = field(default_factory=PostProcessing)

    def __post_init__(self) -> None:
        first = self.models[0]
        for other in self.models[1:]:
            for name in ("labels", "num_channels"):
                if getattr(other, name) != getattr(first, name):
                    raise UserError(
                        f"checkpoint: the networks differ in {name}, {getattr(first, name)} and "
                        f"{getattr(other, name)}. Train those of an ensemble for the same labels and channels."
                    )

    @classmethod
    def from_checkpoint(
        cls,
        checkpoints: Path | str | Sequence[Path | str],
        device: str = "auto",
        precision: str | None = None,
        post_processing: PostProcessing | None = None,
    ) -> "Predictor":
        """Build the network of a run's checkpoint, which is all that is needed, or those of several.

        Args:
            checkpoints: one file, or several for the mean of their probabilities.
            device: auto, cpu, cuda, ...
            precision: Lightning's name; None: what the device computes fast (`choose_precision`).
            post_processing: applied to every segmentation; None: nothing.

        Args:
            path: checkpoint of a run, or of nnU-Net or U-Mamba, or a results folder of these two.
            device: where the network runs.
            precision: see the class.

        Raises:
            UserError: a file is no checkpoint of this project, or its weights do not fit the network it names; the
                networks do not fit together; the device cannot be used.
        """
        paths = [checkpoints] if isinstance(checkpoints, (str, Path)) else list(checkpoints)
        if not paths:
            raise UserError("checkpoint: none is given. Give one, or several as checkpoint=[a.ckpt,b.ckpt].")
        chosen = choose_device(device)
        models = tuple(Model.from_checkpoint(Path(path), chosen, precision) for path in paths)
        return cls(models, post_processing or PostProcessing())

    @property
    def labels(self) -> LabelSet:
        """The label set."""
        return self.models[0].labels

    @property
    def num_channels(self) -> int:
        """Channels of an image."""
        return self.models[0].num_channels

    @property
    def file_ending(self) -> str:
        """Ending of the segmentations that are written."""
        return self.models[0].file_ending

    def predict_image(
        self, image: Image, tile_step_size: float = 0.5, tta: bool = False, max_memory_gb: float | None = None
    ) -> np.ndarray:
        """Return the label map (Z, Y, X) of an image on its own grid; raises UserError as `predict_cases`."""
        settings = Settings(tile_step_size, tta, MemoryLimit(max_memory_gb, self.models, tta))
        prepared = prepare_image(image, self.models)
        canvas = Canvas(prepared.placement, self.labels)
        paint(prepared, canvas, settings, lambda done, total: None)()
        return self.post_processing.apply(canvas.segmentation)

    def predict(
        self,
        input: Path | str,
        output: Path | str,
        *,
        tile_step_size: float = 0.5,
        tta: bool = False,
        overwrite: bool = False,
        workers: int = 2,
        max_memory_gb: float | None = None,
        save_probabilities: bool = False,
        instances: str | None = None,
    ) -> list[Path]:
        """Segment a file, a DICOM series or all images of a folder into output/NAME<file_ending>.

        See `list_cases` for what makes a case, and `predict_cases` for the rest.
        """
        return self.predict_cases(
            list_cases(Path(input), self.num_channels),
            Path(output),
            tile_step_size=tile_step_size,
            tta=tta,
            overwrite=overwrite,
            workers=workers,
            max_memory_gb=max_memory_gb,
            save_probabilities=save_probabilities,
            instances=instances,
        )

    def predict_cases(
        self,
        cases: Sequence[RawCase],
        output: Path,
        *,
        tile_step_size: float = 0.5,
        tta: bool = False,
        overwrite: bool = False,
        workers: int = 2,
        max_memory_gb: float | None = None,
        save_probabilities: bool = False,
        instances: str | None = None,
    ) -> list[Path]:
        """Segment cases into output/<case_id><file_ending>, reading and writing beside the network.

        Args:
            cases: image files and names.
            output: folder of the segmentations; made if missing.
            tile_step_size: largest step between tiles as a fraction of the patch.
            tta: average over mirrored images.
            overwrite: segment again what is already there; else only what is missing.
            workers: threads that read and preprocess, and as many that resample and write.
            max_memory_gb: GiB of main memory that this process may take; None: no limit. The result does not depend on
                it; a low limit costs time.
            save_probabilities: write output/<case_id>.npz, too: `probabilities` (num_classes, Z, Y, X) float32.
            instances: components or watershed: write output/<case_id>_label.tiff, too, the numbered instances of a
                network of interior and boundary (`numbered_instances`); None: none.

        Returns:
            The segmentations written now, in the order of the cases.

        Raises:
            UserError: the folder holds segmentations of another network or other settings; instances are asked of a
                network without interior and boundary; or, after all other cases
                are done, the ones that could not be segmented, each with its reason.
            StorageError: the output cannot be written; what was written before is complete.
        """
        output = Path(output)
        settings = Settings(tile_step_size, tta, MemoryLimit(max_memory_gb, self.models, tta))
        self._check_instances(instances)
        targets = {
            case.case_id: self._target(output, case, save_probabilities, instances is not None) for case in cases
        }
        inputs = {path.resolve() for case in cases for path in case.images}
        for target in targets.values():
            if target.segmentation.resolve() in inputs:
                raise UserError(
                    f"output: {target.segmentation} is one of the images. Give another folder for the segmentations."
                )
        with ExitStack() as stack:
            with storage_errors(output):
                stack.enter_context(exclusive(output / _LOCK, f"the predictions in {output}"))
                remove_stale(output)
                if overwrite:
                    for case in cases:
                        self._target(output, case, True, True).remove()
                    (output / _SETTINGS).unlink(missing_ok=True)
                _claim(output, self._record(settings, instances))
            wanted = [case for case in cases if not targets[case.case_id].complete()]
            batch = Batch(self.models, self.post_processing, instances, settings, max(1, workers))
            problems = batch.run(wanted, [targets[case.case_id] for case in wanted])
        if problems:
            raise UserError(
                f"{len(problems)} of {len(wanted)} images could not be segmented, the others are in {output}:\n"
                + "\n".join(f"{case}: {problem}" for case, problem in problems.items())
            )
        return [targets[case.case_id].segmentation for case in wanted]

    def _target(self, output: Path, case: RawCase, probabilities: bool, instances: bool) -> Target:
        name = f"{case.case_id}{self.file_ending}"
        return Target(
            output / name,
            output / f"{case.case_id}.npz" if probabilities else None,
            output / f"{case.case_id}_label.tiff" if instances else None,
        )

    def _check_instances(self, method: str | None) -> None:
        if method is not None and method not in METHODS:
            raise UserError(f"instances={method}: give {' or '.join(METHODS)}, or null for none.")
        if method is not None and self.labels.values != ((INTERIOR,), (BOUNDARY,)):
            raise UserError(
                f"instances={method}: needs a network of two labels, {INTERIOR} the interior and {BOUNDARY} the "
                f"boundary; this one has {', '.join(self.labels.names)}. Leave instances away."
            )

    def _record(self, settings: Settings, instances: str | None) -> dict[str, Any]:
        """Return what the results in a folder depend on beside the images."""
        identities = [model.identity for model in self.models]
        record: dict[str, Any] = {
            "network": identities[0] if len(identities) == 1 else identities,
            "tile_step_size": settings.tile_step_size,
            "tta": settings.tta,
        }
        if self.post_processing.steps:
            record["post_processing"] = [list(step) for step in self.post_processing.steps]
        if instances is not None:
            record["instances"] = instances
        return record


def _claim(output: Path, record: dict[str, Any]) -> None:
    """Record what the folder's segmentations are made with; UserError if they were made with something else."""
    path = output / _SETTINGS
    if path.exists() and read_json(path) != record:
        raise UserError(
            f"{output}: holds segmentations of another network or other settings ({_SETTINGS}). Give another "
            "folder, or overwrite=true to make them again."
        )
    write_json(path, record)
