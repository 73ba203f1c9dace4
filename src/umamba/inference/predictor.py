"""Segments images with a trained network: one image, a list of cases, or a folder, going on where it stopped.

Training's own predictions and `predict.py` both come through this class, so that they are equal voxel for voxel.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import nn

from umamba.datasets import RawCase
from umamba.inference.cases import list_cases
from umamba.inference.checkpoint import load_checkpoint
from umamba.inference.export import logits_to_segmentation
from umamba.inference.official import find_checkpoint
from umamba.inference.precision import choose_precision
from umamba.inference.tiling import predict_logits
from umamba.io import (
    Image,
    UserError,
    exclusive,
    file_digest,
    read_image,
    read_json,
    remove_stale,
    write_json,
    write_segmentation,
)
from umamba.labels import LabelSet
from umamba.networks import build_network
from umamba.planning import Configuration, Plan
from umamba.preprocessing import CaseProperties, preprocess_case

_SETTINGS = "prediction.json"
_LOCK = ".prediction.lock"


def choose_device(device: str) -> torch.device:
    """Return the device of a name; `auto` is CUDA where there is a GPU, else the CPU. UserError if it cannot be."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"device={device} cannot be used here ({reason}). Use auto or cpu.") from None
    return chosen


@dataclass
class Predictor:
    """A network with all that is needed to segment images in their own space.

    Attributes:
        network: in any mode, on any device; it is moved to `device` and set to evaluation.
        plan: the plan it was trained under.
        configuration: the configuration of that plan.
        labels: the label set.
        num_channels: channels of an image.
        device: where the network runs.
        file_ending: of the segmentations that are written.
        precision: Lightning's name of the precision; None: `choose_precision`.
        identity: what tells this network from others, such as the hash of its checkpoint.
    """

    network: nn.Module
    plan: Plan
    configuration: Configuration
    labels: LabelSet
    num_channels: int
    device: torch.device
    file_ending: str = ".nii.gz"
    precision: str | None = None
    identity: str = ""

    def __post_init__(self) -> None:
        self.precision = self.precision or choose_precision(self.device)
        if getattr(self.network, "deep_supervision", False):
            self.network.deep_supervision = False  # type: ignore[assignment]
        self.network.to(self.device).eval()

    @classmethod
    def from_checkpoint(cls, path: Path, device: str = "auto", precision: str | None = None) -> "Predictor":
        """Build the network of a run's checkpoint, which is all that is needed.

        Args:
            path: checkpoint of a run, or of nnU-Net or U-Mamba, or a results folder of these two.
            device: where the network runs.
            precision: see the class.

        Raises:
            UserError: the file is no checkpoint of this project or of these two, or its weights do not fit the network
                it names; the device cannot be used.
        """
        path = find_checkpoint(path)
        content = load_checkpoint(path)
        record: dict[str, Any] = content["umamba"]
        plan, labels = Plan.from_json(record["plan"]), LabelSet.from_json(record["labels"])
        configuration = plan.configuration(record["configuration"])
        num_channels = len(record["channel_names"])
        network = build_network(
            record["architecture"],
            configuration,
            num_channels,
            labels.num_classes,
            deep_supervision=record["recipe"].get("deep_supervision", True),
        )
        prefix = "network."
        weights = {
            name.removeprefix(prefix): value for name, value in content["state_dict"].items() if name.startswith(prefix)
        }
        try:
            network.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise UserError(
                f"{path}: the weights do not fit the network {record['architecture'].get('name')} of its plan. Another "
                f"version of this project wrote it, or a trainer that changes the network. {error}"
            ) from None
        return cls(
            network,
            plan,
            configuration,
            labels,
            num_channels,
            choose_device(device),
            record["file_ending"],
            precision,
            file_digest(path),
        )

    def predict_image(self, image: Image, *, tile_step_size: float = 0.5, tta: bool = False) -> np.ndarray:
        """Segment an image: label map (Z, Y, X) on its own grid. UserError if its number of channels is wrong."""
        data, properties = self._preprocess(image)
        return self._export(self._logits(data, tile_step_size, tta), properties)

    def predict_folder(
        self,
        input: Path,
        output: Path,
        *,
        tile_step_size: float = 0.5,
        tta: bool = False,
        overwrite: bool = False,
        workers: int = 2,
    ) -> list[Path]:
        """Segment the images of a folder into output/NAME<file_ending>; the rest as in `predict_cases`.

        A case is NAME_0000.ext, NAME_0001.ext, ... (a file per channel) or NAME.ext.
        """
        cases = list_cases(input, self.num_channels)
        return self.predict_cases(
            cases, output, tile_step_size=tile_step_size, tta=tta, overwrite=overwrite, workers=workers
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
    ) -> list[Path]:
        """Segment cases into output/<case_id><file_ending>, reading and writing beside the network.

        Args:
            cases: image files and names.
            output: folder of the segmentations; made if missing.
            tile_step_size: largest step between tiles as a fraction of the patch.
            tta: average over mirrored images.
            overwrite: segment again what is already there; else only what is missing.
            workers: threads that read and preprocess, and as many that resample and write.

        Returns:
            The files written now, in the order of the cases.

        Raises:
            UserError: the folder holds segmentations of another network or other settings; or, after all other cases
                are done, the ones that could not be segmented, each with its reason.
        """
        output = Path(output)
        if not 0 < tile_step_size <= 1:
            raise UserError(f"tile_step_size={tile_step_size}: give a fraction of the patch above 0, at most 1.")
        targets = {case.case_id: output / f"{case.case_id}{self.file_ending}" for case in cases}
        inputs = {path.resolve() for case in cases for path in case.images}
        for target in targets.values():
            if target.resolve() in inputs:
                raise UserError(f"output: {target} is one of the images. Give another folder for the segmentations.")
        with exclusive(output / _LOCK, f"the predictions in {output}"):
            remove_stale(output)
            if overwrite:
                for stale in (output / _SETTINGS, *targets.values()):
                    stale.unlink(missing_ok=True)
            self._claim(output, {"network": self.identity, "tile_step_size": tile_step_size, "tta": tta})
            wanted = [case for case in cases if not targets[case.case_id].exists()]
            problems: dict[str, str] = {}
            self._run(wanted, targets, problems, tile_step_size, tta, max(1, workers))
        if problems:
            raise UserError(
                f"{len(problems)} of {len(wanted)} images could not be segmented, the others are in {output}:\n"
                + "\n".join(f"{case}: {problem}" for case, problem in problems.items())
            )
        return [targets[case.case_id] for case in wanted]

    def _claim(self, output: Path, settings: dict[str, Any]) -> None:
        """Record what the folder's segmentations are made with; UserError if they were made with something else."""
        path = output / _SETTINGS
        if path.exists() and read_json(path) != settings:
            raise UserError(
                f"{output}: holds segmentations of another network or other settings ({_SETTINGS}). Give another "
                "folder, or overwrite=true to make them again."
            )
        write_json(path, settings)

    def _run(
        self,
        cases: Sequence[RawCase],
        targets: dict[str, Path],
        problems: dict[str, str],
        tile_step_size: float,
        tta: bool,
        workers: int,
    ) -> None:
        """Read ahead and write behind the network, at most `workers` cases each way."""
        writing: deque[tuple[str, Future[None]]] = deque()

        def finish(limit: int) -> None:
            while len(writing) > limit:
                case_id, future = writing.popleft()
                try:
                    future.result()
                except UserError as error:
                    problems[case_id] = str(error)

        readers, writers = ThreadPoolExecutor(workers), ThreadPoolExecutor(workers)
        try:
            ahead = _read_ahead(readers, self._read, cases, workers)
            for case, future in track(ahead, "Predicting", len(cases)):
                try:
                    image, data, properties = future.result()
                    logits = self._logits(data, tile_step_size, tta)
                except UserError as error:
                    problems[case.case_id] = str(error)
                    continue
                target = targets[case.case_id]
                writing.append((case.case_id, writers.submit(self._write, target, logits, properties, image)))
                finish(workers)
            finish(0)
        finally:
            for pool in (readers, writers):
                pool.shutdown(cancel_futures=True)

    def _read(self, case: RawCase) -> tuple[Image, torch.Tensor, CaseProperties]:
        image = read_image(case.images)
        data, properties = self._preprocess(image)
        return Image(image.array[:0], image.geometry), data, properties

    def _preprocess(self, image: Image) -> tuple[torch.Tensor, CaseProperties]:
        if len(image.array) != self.num_channels:
            raise UserError(
                f"the image has {len(image.array)} channels, the network was trained with {self.num_channels}. "
                "Give the same channels in the same order."
            )
        data, _, properties = preprocess_case(image, None, self.plan, self.configuration, self.labels)
        return torch.from_numpy(data), properties

    def _logits(self, data: torch.Tensor, tile_step_size: float, tta: bool) -> torch.Tensor:
        assert self.precision is not None
        logits = predict_logits(
            self.network,
            data,
            self.configuration,
            num_classes=self.labels.num_classes,
            tile_step_size=tile_step_size,
            tta=tta,
            device=self.device,
            precision=self.precision,
        )
        if not torch.isfinite(logits).all():
            raise UserError(
                f"the network gave values that are not finite in precision {self.precision}: its training diverged, or "
                "the image holds such values."
            )
        return logits

    def _export(self, logits: torch.Tensor, properties: CaseProperties) -> np.ndarray:
        return logits_to_segmentation(logits, properties, self.plan, self.configuration, self.labels)

    def _write(self, target: Path, logits: torch.Tensor, properties: CaseProperties, image: Image) -> None:
        write_segmentation(target, self._export(logits, properties), image.geometry)


def _read_ahead(
    pool: ThreadPoolExecutor, read: Any, cases: Sequence[RawCase], ahead: int
) -> Iterator[tuple[RawCase, Future[Any]]]:
    """Yield each case with the future of its content, with up to `ahead` more being read."""
    queue: deque[tuple[RawCase, Future[Any]]] = deque()
    for case in cases:
        queue.append((case, pool.submit(read, case)))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue
