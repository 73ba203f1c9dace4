"""What prediction.json says of each case: which image, weights, plan, settings and code made its segmentation.

A setup holds everything but the image on which labels depend, and is named by its own hash, so that a changed setting
does not go unnoticed. An entry of a case names its setup. While cases are segmented, their entries are appended to a
journal, each before the segmentation gets its name; at the end they move into prediction.json. Hashes find what was
changed by accident; they do not stop somebody who wants to deceive, because anybody can compute them again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from umamba.inference.digests import label_digest, plain_digest
from umamba.inference.model import Model
from umamba.inference.outputs import CLASSIFIED, Outputs
from umamba.inference.postprocessing import PostProcessing
from umamba.io import provenance, storage_errors
from umamba.io.versions import package_versions, source_digest
from umamba.settings import SlidingWindowSettings

_OPTIONAL_PACKAGES = ("openvino",)


@dataclass(frozen=True)
class CaseEntry:
    """What made the segmentation of a case.

    Attributes:
        images: paths of the image's files; another place of the same image is no difference.
        image: hash of its voxels and geometry.
        result: hash of the voxels of the label map.
        setup: hash of everything else on which the labels depend.
    """

    images: tuple[str, ...]
    image: str
    result: str
    setup: str

    @classmethod
    def from_json(cls, found: Any) -> "CaseEntry | None":
        """Return the entry that a file holds; None: it is none.

        Args:
            found: what the file holds.
        """
        if not isinstance(found, Mapping) or not isinstance(found.get("images"), list):
            return None
        values = {entry.name: found.get(entry.name) for entry in fields(cls)}
        texts = [*found["images"], *(value for name, value in values.items() if name != "images")]
        if not all(isinstance(text, str) for text in texts):
            return None
        return cls(**{**values, "images": tuple(found["images"])})  # type: ignore[arg-type]


def setup_of(
    models: Sequence[Model], settings: SlidingWindowSettings, post_processing: PostProcessing
) -> dict[str, Any]:
    """Return everything but the image on which labels depend, as plain values.

    Args:
        models: the networks, whose engines are settled.
        settings: the sliding window and test-time augmentation.
        post_processing: applied to the segmentations.
    """
    return {
        "networks": [network_entry(model) for model in models],
        "tile_step_size": settings.tile_step_size,
        "tta": settings.tta,
        "post_processing": [list(step) for step in post_processing.steps],
        "threads": torch.get_num_threads(),
        "code": code_now(),
    }


@cache
def code_now() -> dict[str, Any]:
    """Return the code of this process: versions, revision, and the hash of this package's files."""
    code = provenance()
    packages = code["packages"] | package_versions(_OPTIONAL_PACKAGES)
    return {**code, "packages": packages, "sources": source_digest()}


def network_entry(model: Model) -> dict[str, Any]:
    """Return the hashes of a network, and what computes it.

    Args:
        model: the network; its engine is settled.
    """
    seen = [model.plan.to_json(), model.configuration.name, model.labels.to_json(), model.num_channels]
    return {
        "weights": model.weights,
        "plan": plain_digest([*seen, model.mirror_axes]),
        "engine": "torch" if model.compiled is None else "openvino",
        "precision": model.precision,
        "device": model.device.type,
        "reproducible": model.reproducible,
        "tile_scale": model.tile_scale,
    }


class Manifest:
    """The setups and entries of an output folder."""

    def __init__(self, outputs: Outputs, before: Mapping[str, Any] | None) -> None:
        """Read the entries of earlier commands; those that were killed left theirs in the journal.

        Args:
            outputs: where the files are.
            before: what prediction.json holds; None: nothing, and a journal is of no use.
        """
        self._outputs, self._lock = outputs, Lock()
        found = dict(before or {})
        setups, cases = found.get("setups"), found.get("cases")
        self.setups: dict[str, Any] = dict(setups) if isinstance(setups, Mapping) else {}
        self.cases: dict[str, CaseEntry] = {}
        self.classified: dict[str, CaseEntry] = {}
        for kept, entries in ((self.cases, cases), (self.classified, found.get(CLASSIFIED))):
            for case_id, entry in entries.items() if isinstance(entries, Mapping) else ():
                _take(kept, case_id, entry)
        if before is not None:
            for line in _lines(outputs.journal):
                _take(self.classified if line.get(CLASSIFIED) else self.cases, line.get("case"), line)
        self._setup = ""

    def other_cases(self, cases: Sequence[str]) -> list[str]:
        """Return the further cases that an output holds: those of earlier commands with the same network and settings.

        Args:
            cases: of this command.
        """
        # The only segmentation has the name of the output, and its entry that of the image.
        return [] if self._outputs.only is not None else [name for name in self.cases if name not in set(cases)]

    def forget(self, cases: Sequence[str]) -> None:
        """Remove the entries of cases that are segmented again.

        Args:
            cases: their names.
        """
        for name in cases:
            self.cases.pop(name, None)
            self.classified.pop(name, None)

    def use(self, setup: Mapping[str, Any]) -> None:
        """Name the setup of the cases that are segmented from now on.

        Args:
            setup: see `setup_of`.
        """
        self._setup = plain_digest(setup)
        self.setups[self._setup] = dict(setup)

    def note(self, case_id: str, images: Sequence[Path], image: str, segmentation: np.ndarray) -> None:
        """Note a case, before its segmentation is written; threads may call this.

        Args:
            case_id: the case.
            images: its files.
            image: hash of the image.
            segmentation: the label map (Z, Y, X).

        Raises:
            StorageError: the journal cannot be written.
        """
        entry = CaseEntry(written_paths(images), image, label_digest(segmentation), self._setup)
        self._append(self.cases, case_id, entry)

    def note_classes(self, case_id: str, images: Sequence[Path], image: str) -> None:
        """Note a case that was classified without a segmentation, before its row is written.

        Args:
            case_id: the case.
            images: its files.
            image: hash of the image.

        Raises:
            StorageError: the journal cannot be written.
        """
        self._append(self.classified, case_id, CaseEntry(written_paths(images), image, "", self._setup), CLASSIFIED)

    def _append(self, entries: dict[str, CaseEntry], case_id: str, entry: CaseEntry, *marks: str) -> None:
        content = {"case": case_id, **asdict(entry), **dict.fromkeys(marks, True)}
        line = json.dumps(content, ensure_ascii=False) + "\n"
        with self._lock, storage_errors(self._outputs.journal):
            entries[case_id] = entry
            with self._outputs.journal.open("a", encoding="utf-8") as file:
                file.write(line)

    def content(self) -> dict[str, Any]:
        """Return what stands in prediction.json: the setups that cases name, or that is used now, and the cases."""
        named = {self._setup, *(entry.setup for kept in (self.cases, self.classified) for entry in kept.values())}
        content = {
            "setups": {name: setup for name, setup in self.setups.items() if name in named},
            "cases": {case_id: asdict(entry) for case_id, entry in sorted(self.cases.items())},
        }
        if self.classified:
            content[CLASSIFIED] = {case_id: asdict(entry) for case_id, entry in sorted(self.classified.items())}
        return content


def written_paths(images: Sequence[Path]) -> tuple[str, ...]:
    """Return the paths of an image as an entry holds them.

    Args:
        images: its files.
    """
    return tuple(os.fsencode(os.path.abspath(path)).decode("utf-8", "replace") for path in images)


def _take(kept: dict[str, CaseEntry], case_id: Any, found: Any) -> None:
    """Keep what a file holds, if it is the entry of a case."""
    entry = CaseEntry.from_json(found)
    if entry is not None and isinstance(case_id, str):
        kept[case_id] = entry


def _lines(journal: Path) -> list[dict[str, Any]]:
    """Return the entries of a journal; the last line of a killed command may be cut, and is left out."""
    try:
        text = journal.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found
