"""Store preprocessed cases on disk in two blosc2 files per case, from which single patches can be read.

    <root>/<dataset>/<configuration>_<key>/
        store.json            plan, configuration, dataset hash, case names, checksums of all files and of itself;
                              written last, so it marks a complete store
        <case>.label.b2nd     (1, Z, Y, X) int16
        <case>.image.b2nd     (C, Z, Y, X) float32; its metadata hold the foreground voxels and the case's properties

The key is a hash of all that the voxels depend on. An unchanged dataset therefore finds its store again, and a changed
one gets a new store beside the old.
"""

import hashlib
import json
import logging
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from umamba.datasets import RawCase, RawDataset, over_cases
from umamba.datasets.parallel import memory_problem
from umamba.io import (
    StorageError,
    UserError,
    atomic_path,
    exclusive,
    make_folder,
    read_image,
    read_json,
    read_label,
    remove_stale,
    write_json,
    wrong_name,
)
from umamba.io.checksums import checksums
from umamba.io.documents import OWN_BYTES
from umamba.labels import LabelSet
from umamba.labels.view import letters_of
from umamba.planning import Configuration, Plan
from umamba.planning.plan import FULLRES
from umamba.preprocessing.case import CaseProperties, preprocess_case
from umamba.preprocessing.foreground import foreground_voxels
from umamba.settings.validate import read_record
from umamba.settings.wording import shown

log = logging.getLogger(__name__)

FORMAT = 3  # increase it whenever the same dataset and plan would give other files
_STORE = "store.json"
_SEAL = "checksum"  # entry of store.json: the checksum of the others
_BLOCK_VOXELS = 16 * 32 * 32  # decoded together: small enough for a core's cache, with little excess around a patch
_CHUNK_VOXELS = 128**3


@dataclass(frozen=True)
class StoredCase:
    """An opened preprocessed case.

    Attributes:
        case_id: its name.
        image: (C, Z, Y, X) float32; slicing it reads voxels from disk.
        label: (1, Z, Y, X) int16; slicing it reads voxels from disk. Background outside the nonzero mask is -1.
        foreground: voxel indices (n, 3) int32 of each class, see `foreground_voxels`.
        properties: the facts needed to undo the preprocessing.
        previous: (1, Z, Y, X) int16 labels of the previous stage of a cascade, on the grid of the image; slicing it
            reads voxels from disk. None: no cascade.
    """

    case_id: str
    image: Any
    label: Any
    foreground: dict[int, np.ndarray]
    properties: CaseProperties
    previous: Any | None = None


@dataclass(frozen=True)
class CaseStore:
    """The preprocessed training cases of a dataset.

    Attributes:
        path: folder of the store.
        case_ids: sorted names of the cases.
        previous: folder of the labels of the previous stage of a cascade, see `umamba.preprocessing.previous`; None: no
            cascade.
    """

    path: Path
    case_ids: tuple[str, ...]
    previous: Path | None = None

    @property
    def plan(self) -> Plan:
        """The plan by which the cases were preprocessed."""
        return Plan.from_json(_content(self.path).plan)

    @property
    def configuration(self) -> Configuration:
        """The plan's configuration by which the cases were preprocessed."""
        return self.plan.configuration(_content(self.path).configuration)

    @property
    def labels(self) -> LabelSet:
        """The labels of the dataset."""
        return LabelSet.from_json(_content(self.path).labels)

    def load(self, case_id: str) -> StoredCase:
        """Open a case without reading its voxels.

        Args:
            case_id: its name.

        Raises:
            UserError: the files of the case are missing or damaged.
        """
        try:
            image, label = (open_array(case_file(self.path, case_id, what)) for what in ("image", "label"))
            meta = image.schunk.vlmeta
            voxels = {
                int(key): np.frombuffer(value, np.int32).reshape(-1, 3) for key, value in meta["foreground"].items()
            }
            properties = CaseProperties.from_json(json.loads(meta["properties"]))
            previous = None if self.previous is None else open_array(case_file(self.previous, case_id, "previous"))
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            folders = " and ".join(str(folder) for folder in (self.path, self.previous) if folder is not None)
            raise UserError(
                f"{folders}: the prepared files of {case_id} cannot be read ({error}). Delete what is there, and "
                "prepare the dataset again."
            ) from error
        return StoredCase(case_id, image, label, voxels, properties, previous)

    def letters(self, case_id: str) -> tuple[str, str, str] | None:
        """Return the anatomical directions in which a case's stored axes grow; None for a two-dimensional image.

        Args:
            case_id: name of the case.
        """
        letters = letters_of(self.load(case_id).properties.seen_geometry)
        if letters is None:
            return None
        first, second, third = (letters[axis] for axis in self.plan.transpose_forward)
        return first, second, third


def prepare_store(
    dataset: RawDataset,
    digest: str,
    plan: Plan,
    configuration_name: str,
    root: Path,
    workers: int,
    check: bool = True,
    labelled: bool = True,
) -> CaseStore:
    """Preprocess the training cases of a dataset, unless their store exists.

    The files of a store are compared with their checksums, and damaged cases are prepared again. Several processes may
    call this at once: one works while the others wait. Cases that an interrupted process has finished are kept.

    Args:
        dataset: the raw dataset.
        digest: hash of its content, from `dataset_digest`.
        plan: its plan.
        configuration_name: name of the plan's configuration.
        root: folder of all preprocessed datasets.
        workers: worker processes.
        check: whether to compare the files of an existing store with their checksums. Stores of version 0.1 have none.
        labelled: False: the cases have no labels, and their label maps hold background (-1 outside the nonzero mask).

    Raises:
        UserError: with a list of all cases that cannot be preprocessed.
        StorageError: the disk cannot be written; the cases that are complete are kept.
    """
    configuration = plan.configuration(configuration_name)
    # A cascade that only inherits 3d_fullres has the same voxels, and shares its folder.
    configuration_name = configuration_name if configuration_name in plan.configurations else FULLRES
    folder = root / dataset.name / f"{configuration_name}_{store_key(digest, plan, configuration, dataset.labels)}"
    store = CaseStore(folder, tuple(sorted(case.case_id for case in dataset.training)))
    if _is_whole(store) and not (check and _damaged(store, workers)):
        return store
    with exclusive(folder.parent / f".{folder.name}.lock", f"the preprocessed cases in {folder}"):
        if _is_whole(store):
            damaged = _damaged(store, workers) if check else set()
            if not damaged:
                return store
            log.warning("%s: damaged on the disk, and prepared again: %s", folder, ", ".join(sorted(damaged)))
        else:
            damaged = set()
            make_folder(folder)
            remove_stale(folder)
        missing = [
            case
            for case in dataset.training
            if case.case_id in damaged or not case_file(folder, case.case_id, "image").exists()
        ]
        prepare = partial(
            _prepare_case,
            folder=folder,
            plan=plan,
            configuration=configuration,
            labels=dataset.labels,
            labelled=labelled,
            workers=min(workers, len(missing)),
        )
        title = f"Preprocessing {dataset.name} for {configuration_name}"
        problems = [problem for problem in over_cases(prepare, missing, workers, title) if problem]
        if problems:
            raise UserError("\n".join([f"{dataset.root}: these cases cannot be preprocessed.", *problems]))
        content = {
            "format": FORMAT,
            "dataset_digest": digest,
            "configuration": configuration_name,
            "plan": plan.to_json(),
            "labels": dataset.labels.to_json(),
            "cases": list(store.case_ids),
            "checksums": _checksums(store, workers),
        }
        write_json(folder / _STORE, {**content, _SEAL: _seal(content)})
    return store


@dataclass(frozen=True)
class _Content:
    """The content of store.json; `checksums` is None in stores of version 0.1."""

    plan: Mapping[str, Any]
    configuration: str
    labels: Mapping[str, Any]
    cases: tuple[str, ...]
    checksums: Mapping[str, Any] | None = None


def _content(folder: Path) -> _Content:
    """Read the store.json of a store."""
    path = folder / _STORE
    try:
        content = read_json(path, OWN_BYTES)
        found = read_record(_Content, content)
        if content.get(_SEAL, _seal(content)) != _seal(content):  # that of an earlier version has none
            raise UserError("differs from its checksum.")
        wrong = next((name for name in found.cases if wrong_name(name)), None)
        if wrong is not None:
            raise UserError(f"cases: {shown(wrong)} is no name of a case.")
        return found
    except UserError as error:
        text = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path}: {text} Delete this file, and prepare the dataset again; its cases stay.") from None


def _is_whole(store: CaseStore) -> bool:
    """Return whether a store is complete; a damaged store.json is written again, as after an interruption."""
    if not (store.path / _STORE).exists():
        return False
    try:
        if _content(store.path).cases == store.case_ids:
            return True
        reason = "it lists other cases"
    except UserError as error:
        reason = str(error).removeprefix(f"{store.path / _STORE}: ").split(". ")[0]
    log.warning("%s is damaged (%s), and is written again.", store.path / _STORE, reason)
    return False


def _files(store: CaseStore) -> list[Path]:
    return [case_file(store.path, case_id, what) for case_id in store.case_ids for what in ("image", "label")]


def _checksums(store: CaseStore, workers: int) -> dict[str, int | None]:
    files = _files(store)
    return {file.name: value for file, value in zip(files, checksums(files, workers), strict=True)}


def _damaged(store: CaseStore, workers: int) -> set[str]:
    """Return the cases whose files differ from their checksums; none for a store without checksums."""
    expected = _content(store.path).checksums
    if expected is None:
        return set()
    found = _checksums(store, workers)
    return {name.rpartition(".")[0].rpartition(".")[0] for name in found if found[name] != expected.get(name)}


def _seal(content: Mapping[str, Any]) -> int:
    """Return the CRC-32 of what store.json holds, without the checksum itself."""
    own = {name: value for name, value in content.items() if name != _SEAL}
    return zlib.crc32(json.dumps(own, sort_keys=True).encode())


def open_store(folder: Path) -> CaseStore:
    """Open a complete store.

    Args:
        folder: its folder.

    Raises:
        UserError: the folder holds no complete store.
    """
    if not (folder / _STORE).exists():
        raise UserError(f"{folder}: holds no complete set of preprocessed cases. Prepare the dataset to make them.")
    return CaseStore(folder, _content(folder).cases)


def store_key(digest: str, plan: Plan, configuration: Configuration, labels: LabelSet) -> str:
    """Return a hash of all that the stored voxels depend on; patch and batch size do not change it.

    Args:
        digest: hash of the dataset.
        plan: the plan.
        configuration: the configuration.
        labels: the declared labels.

    Returns:
        Eight hexadecimal digits.
    """
    content = {
        "format": FORMAT,
        "dataset": digest,
        "transpose": plan.transpose_forward,
        "spacing": configuration.spacing,
        "normalization": configuration.normalization,
        "use_mask_for_norm": configuration.use_mask_for_norm,
        "intensity": [asdict(channel) for channel in plan.intensity],
        "labels": labels.to_json(),
        **({} if plan.reader is None else {"reader": plan.reader}),
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=4).hexdigest()


def _prepare_case(
    case: RawCase,
    folder: Path,
    plan: Plan,
    configuration: Configuration,
    labels: LabelSet,
    labelled: bool,
    workers: int,
) -> str | None:
    """Preprocess and write one case, beside those of the other workers; return its error message, or None."""
    try:
        _write_case(case, folder, plan, configuration, labels, labelled)
    except StorageError:
        raise
    except UserError as error:
        return f"{case.images[0].name}: {error}"
    except Exception as error:
        problem = memory_problem(case, error, workers)
        if problem is None:
            raise
        return problem
    return None


def _write_case(
    case: RawCase, folder: Path, plan: Plan, configuration: Configuration, labels: LabelSet, labelled: bool
) -> None:
    """Preprocess and write one case."""
    read = read_image(case.images, turn_channels=plan.reader is not None)
    if not labelled:
        given = replace(read, array=np.zeros((1, *read.array.shape[1:]), np.int16))
    elif case.label is None:
        raise UserError("has no label file. Add it to labelsTr.")
    else:
        given = read_label(case.label)
    image, label, properties = preprocess_case(read, given, plan, configuration, labels, case.case_id)
    assert label is not None
    voxels = {str(key): found.tobytes() for key, found in foreground_voxels(label, labels).items()}
    flat = configuration.dim == 2
    write_array(case_file(folder, case.case_id, "label"), label, flat)
    meta = {"foreground": voxels, "properties": json.dumps(properties.to_json())}
    # Written last, because it marks a finished case.
    write_array(case_file(folder, case.case_id, "image"), image, flat, meta)


def open_array(path: Path) -> Any:
    """Open an array that `write_array` wrote; slicing it reads voxels from disk.

    Args:
        path: the file.
    """
    # Use one thread, because a forked process does not inherit blosc2's threads and would wait for them forever.
    return blosc2.open(str(path), mmap_mode="r", dparams=blosc2.DParams(nthreads=1))


def write_array(path: Path, array: np.ndarray, flat: bool, meta: dict[str, Any] | None = None) -> None:
    """Write an array to a file that single patches can be read from.

    Args:
        path: the file, which becomes visible when it is complete.
        array: (C, Z, Y, X).
        flat: whether the training reads slices (a 2D configuration).
        meta: further values in the file.
    """
    chunks, blocks = chunk_shapes(array.shape, flat)
    with atomic_path(path) as temporary:
        written = blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=str(temporary),
            mode="w",
            chunks=chunks,
            blocks=blocks,
            cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=5, filters=[blosc2.Filter.SHUFFLE], nthreads=1),
            dparams=blosc2.DParams(nthreads=1),
        )
        for key, value in (meta or {}).items():
            written.schunk.vlmeta[key] = value


def chunk_shapes(shape: Sequence[int], flat: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of blosc2's chunks and blocks, both (C, Z, Y, X) with all channels.

    A block has half as many slices as rows and columns, or one slice if the training reads slices. The blocks of an
    axis have nearly equal sizes.

    Args:
        shape: (C, Z, Y, X) of the stored array.
        flat: whether the training reads slices (a 2D configuration).
    """
    voxels = _BLOCK_VOXELS / shape[0]
    edge = round(voxels ** (1 / 2) if flat else (2 * voxels) ** (1 / 3))
    edges = (1 if flat else max(4, edge // 2), max(8, edge), max(8, edge))
    blocks = tuple(math.ceil(size / max(1, round(size / most))) for size, most in zip(shape[1:], edges, strict=True))
    wide = round((_CHUNK_VOXELS / shape[0]) ** (1 / (2 if flat else 3)))
    chunks = tuple(
        min(size, math.ceil(most / step) * step)
        for size, most, step in zip(shape[1:], (1 if flat else wide, wide, wide), blocks, strict=True)
    )
    return (shape[0], *chunks), (shape[0], *blocks)


def case_file(folder: Path, case_id: str, what: str) -> Path:
    """Return the file of a case.

    Args:
        folder: that it is in.
        case_id: the case.
        what: image, label or previous.
    """
    return folder / f"{case_id}.{what}.b2nd"
