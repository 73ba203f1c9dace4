"""Repeat the segmentations of a folder and say of each whether it is what prediction.json says, to the voxel.

First the hashes are compared: of the setup with its name, of the networks, of the image. Only where they agree the
image is segmented again by the recorded engine, precision and settings, and compared with the file and with the entry.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from umamba.datasets import RawCase
from umamba.inference.cases import find_cases
from umamba.inference.checkpoints import find_checkpoints
from umamba.inference.digests import image_digest, label_digest, plain_digest
from umamba.inference.manifest import CaseEntry, Manifest, code_now, network_entry
from umamba.inference.model import Model, choose_device
from umamba.inference.outputs import Outputs
from umamba.inference.postprocessing import PostProcessing
from umamba.inference.predictor import Predictor
from umamba.io import Image, UserError, geometry_difference, read_image, read_json, read_label, supported_endings
from umamba.io.documents import OWN_BYTES
from umamba.settings import InvalidSettings, PredictionSettings, VerifySettings
from umamba.settings.prediction import MOST_TILE_SCALE

_FIXED = ("engine", "precision", "device", "reproducible")  # of a network's entry: what computes it


@dataclass(frozen=True)
class Verdict:
    """What was found of one case.

    Attributes:
        case_id: the case.
        same: whether the segmentation is the recorded one and was repeated to the voxel.
        reason: why not; or what differs all the same, such as the version of the code. Empty: nothing.
    """

    case_id: str
    same: bool
    reason: str = ""


class _Differs(Exception):
    """What differs, in words."""


def verify(settings: VerifySettings) -> Iterator[Verdict]:
    """Verify the segmentations of a folder, or a single one.

    Args:
        settings: the folder or file, and where checkpoints and images are now, if they were moved.

    Yields:
        A verdict for each case, in the order of their names.

    Raises:
        UserError: there is no prediction.json with entries; the checkpoint or the device cannot be used.
    """
    outputs = Outputs.at(settings.predictions, "")
    if not outputs.record.exists():
        raise UserError(
            f"{outputs.record}: no such file, so nothing says what made the segmentations. Give a folder that "
            "umamba predict wrote."
        )
    recorded = read_json(outputs.record, OWN_BYTES)
    before = recorded if isinstance(recorded, Mapping) else {}
    manifest = Manifest(outputs, before)
    if not manifest.cases:
        raise UserError(f"{outputs.record}: {_why_empty(before)}")
    return _verdicts(settings, outputs, before, manifest)


def _why_empty(recorded: Mapping[str, Any]) -> str:
    """Return why prediction.json names no case, and what to do."""
    if "cases" not in recorded:
        return (
            "has no entries of cases, because an earlier version wrote it. Segment the images again with "
            "overwrite=true."
        )
    if recorded["cases"]:
        return "its entries of cases are damaged. Segment the images again with overwrite=true."
    return (
        "has no entries of cases, because nothing was segmented there: every image failed, or only classes were "
        "predicted. Give a folder that holds segmentations."
    )


def _verdicts(
    settings: VerifySettings, outputs: Outputs, before: Mapping[str, Any], manifest: Manifest
) -> Iterator[Verdict]:
    checkpoints = settings.checkpoints or tuple(Path(str(path)) for path in _texts(before.get("checkpoints")))
    if not checkpoints:
        raise UserError(f"checkpoint: {outputs.record} does not say where the networks are. Give checkpoint=FILE.")
    predictors: dict[str, Predictor] = {}  # the last one only, because each holds its networks
    files: dict[str, Path] = {}
    cases = sorted(manifest.cases.items(), key=lambda item: (item[1].setup, item[0]))
    for case_id, entry in cases:
        try:
            setup = _setup(manifest, entry)
            if entry.setup not in predictors:
                predictors.clear()
                predictors[entry.setup] = _predictor(setup, checkpoints, settings)
            predictor = predictors[entry.setup]
            own = Outputs.at(settings.predictions, predictor.file_ending)
            files[case_id] = own.case(case_id, PredictionSettings()).segmentation
            _compare_networks(setup, predictor)
            images = _images(case_id, entry, settings.input, predictor.num_channels)
            yield Verdict(case_id, True, _compare(entry, setup, files[case_id], images, predictor, settings))
        except _Differs as difference:
            yield Verdict(case_id, False, str(difference))
        except UserError as error:
            yield Verdict(case_id, False, str(error))
    if outputs.only is None:
        for name in _foreign(outputs.folder, set(manifest.cases), {_ending(path) for path in files.values()}):
            yield Verdict(name, False, f"{outputs.record.name} has no entry of it, so nothing says what made it")


def _setup(manifest: Manifest, entry: CaseEntry) -> Mapping[str, Any]:
    setup = manifest.setups.get(entry.setup)
    if not isinstance(setup, Mapping):
        raise _Differs("prediction.json does not hold the settings that its entry names")
    if plain_digest(setup) != entry.setup:
        raise _Differs("the settings in prediction.json were changed after the segmentation")
    return setup


def _predictor(setup: Mapping[str, Any], checkpoints: Sequence[Path], settings: VerifySettings) -> Predictor:
    """Build the networks, computed by the recorded engines in the recorded precisions."""
    files, entries = find_checkpoints([Path(path) for path in checkpoints]), _networks(setup)
    if len(files) != len(entries):
        raise _Differs(f"{len(entries)} networks made it, and checkpoint names {len(files)}")
    models = tuple(
        Model.from_checkpoint(
            path,
            choose_device(str(entry.get("device")) if settings.device == "auto" else settings.device),
            precision=str(entry.get("precision")),
            trust=settings.trust,
            engine=str(entry.get("engine")) if settings.engine == "auto" else settings.engine,
            reproducible=entry.get("reproducible") is True,
            tile_scale=_tile_scale(entry),
        )
        for path, entry in zip(files, entries, strict=True)
    )
    if any(model.configuration.previous_stage is not None for model in models):
        raise UserError(
            "the network is the second stage of a cascade, whose segmentations depend on files of the first. Verify "
            "those of the first stage."
        )
    return Predictor(models, PostProcessing(_steps(setup.get("post_processing"))))


def _networks(setup: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what the setup says of each network."""
    found = setup.get("networks")
    if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
        raise _Differs("prediction.json holds no usable settings")
    return found


def _tile_scale(entry: Mapping[str, Any]) -> int:
    scale = entry.get("tile_scale", 1)  # versions before this setting had tiles of one patch
    if type(scale) is not int or not 1 <= scale <= MOST_TILE_SCALE:
        raise _Differs("prediction.json holds no usable settings")
    return scale


def _steps(found: Any) -> tuple[tuple[int, ...], ...]:
    steps = found if isinstance(found, list) else []
    if not all(isinstance(step, list) and all(type(value) is int for value in step) for step in steps):
        raise _Differs("prediction.json holds no usable settings")
    return tuple(tuple(step) for step in steps)


def _compare_networks(setup: Mapping[str, Any], predictor: Predictor) -> None:
    for number, (model, entry) in enumerate(zip(predictor.models, _networks(setup), strict=True), start=1):
        found = network_entry(model)
        for name, what in (("weights", "weights"), ("plan", "plan or labels")):
            if found[name] != entry.get(name):
                which = f" of network {number}" if len(predictor.models) > 1 else ""
                raise _Differs(f"the {what}{which} in {model.source} are not those that made it")


def _images(case_id: str, entry: CaseEntry, moved: Path | None, num_channels: int) -> tuple[Path, ...]:
    """Return the files of the image, where it was or where it is now."""
    if moved is None:
        return tuple(Path(path) for path in entry.images)
    cases, _ = find_cases(moved, num_channels, warn=False)
    found: RawCase | None = next((case for case in cases if case.case_id == case_id), None)
    if found is None and len(cases) == 1 and not moved.is_dir():
        found = cases[0]
    if found is None:
        raise _Differs(f"its image is not in {moved}")
    return found.images


def _compare(
    entry: CaseEntry,
    setup: Mapping[str, Any],
    file: Path,
    images: Sequence[Path],
    predictor: Predictor,
    settings: VerifySettings,
) -> str:
    """Compare a case; return what differs all the same."""
    if not file.exists():
        raise _Differs(f"{file} is missing")
    missing = [path for path in images if not path.exists()]
    if missing:
        raise _Differs(f"the image {missing[0]} is not there any more. Give input=FOLDER, if it was moved")
    image = read_image(images, time_is_channels=True, turn_channels=predictor.models[0].plan.reader is not None)
    if image_digest(image) != entry.image:
        raise _Differs(f"the image {images[0]} is not the one that was segmented: a voxel or its geometry differs")
    written = read_label(file)
    _compare_geometry(written, image)
    try:
        used = PredictionSettings(
            tile_step_size=float(setup["tile_step_size"]), tta=bool(setup["tta"]), max_memory_gb=settings.max_memory_gb
        )
    except (KeyError, TypeError, ValueError, InvalidSettings):
        raise _Differs("prediction.json holds no usable settings") from None
    repeated = predictor.predict_image(image, used)
    from_file = int(np.count_nonzero(written.array[0] != repeated))
    same = label_digest(repeated) == entry.result
    remarks = _remarks(setup, predictor)
    if not same:
        others = f" ({'; '.join(remarks)})" if remarks else ""
        what = (
            f"{from_file} of {repeated.size} voxels of the file differ" if from_file else "the hash of its labels does"
        )
        raise _Differs(f"the repetition gives other labels{others}: {what}")
    if from_file:
        raise _Differs(f"{from_file} of {repeated.size} voxels of {file.name} were changed after it was written")
    return "; ".join(remarks)


def _compare_geometry(written: Image, image: Image) -> None:
    """Refuse a file that lies elsewhere than its image."""
    if written.array.shape[1:] != image.array.shape[1:]:
        raise _Differs(f"its shape is {written.array.shape[1:]}, that of the image {image.array.shape[1:]}")
    difference = geometry_difference(image.geometry, written.geometry)
    if difference is None and len(image.geometry.origin_xyz) == len(written.geometry.origin_xyz):
        apart = float(np.linalg.norm(np.subtract(image.geometry.origin_xyz, written.geometry.origin_xyz)))
        natural = image.geometry.is_2d and not any(written.geometry.origin_xyz)  # PNG and the like store no origin
        if apart > 1e-2 and not natural:
            difference = f"the origin is {apart:.3g} mm away"
    if difference is not None and not written.geometry.is_2d:
        raise _Differs(f"its geometry differs from that of the image: {difference}")


def _remarks(setup: Mapping[str, Any], predictor: Predictor) -> list[str]:
    """Return what differs from the recorded circumstances without being part of the result."""
    remarks = []
    for model, entry in zip(predictor.models, _networks(setup), strict=True):
        found = network_entry(model)
        remarks += [
            f"{name} {entry.get(name)} then, {found[name]} now" for name in _FIXED if found[name] != entry.get(name)
        ]
    threads = torch.get_num_threads()
    if setup.get("threads") != threads and not all(model.reproducible for model in predictor.models):
        remarks.append(f"threads {setup.get('threads')} then, {threads} now")
    now = code_now()
    code = setup.get("code")
    then: Mapping[str, Any] = code if isinstance(code, Mapping) else {}
    if then.get("sources") != now["sources"]:
        remarks.append(f"other code: {_revision(then)} then, {_revision(now)} now")
    old, new = then.get("packages"), now["packages"]
    if isinstance(old, Mapping):
        remarks += [f"{name} {old[name]} then, {new.get(name)} now" for name in old if old[name] != new.get(name)]
    return list(dict.fromkeys(remarks))


def _revision(code: Mapping[str, Any]) -> str:
    git = code.get("git")
    revision = str(git.get("revision"))[:12] if isinstance(git, Mapping) else ""
    return f"umamba {code.get('umamba')}" + (f" at {revision}" if revision else "")


def _texts(value: Any) -> list[str]:
    return [str(entry) for entry in value] if isinstance(value, list) else []


def _ending(path: Path) -> str:
    return next((known for known in supported_endings() if path.name.lower().endswith(known)), path.suffix)


def _foreign(folder: Path, known: set[str], endings: set[str]) -> list[str]:
    """Return the names of label maps in a folder that are no case of the manifest."""
    names = []
    for path in sorted(folder.iterdir()):
        ending = next((end for end in endings if path.name.lower().endswith(end)), None)
        if ending is None or path.name.startswith(".") or os.path.isdir(path):
            continue
        name = path.name[: -len(ending)]
        if name not in known and not (name.endswith("_label") and name.removesuffix("_label") in known):
            names.append(name)
    return names
