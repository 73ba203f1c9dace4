"""The warnings about a dataset's images, which are kept because the check of all images takes long."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from umamba.datasets import Finding, RawDataset, findings_table, list_findings, same_images
from umamba.io import StorageError, UserError, read_json, write_json
from umamba.io.documents import OWN_BYTES
from umamba.settings.validate import read_record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptContent:
    """The content of a training image.

    Attributes:
        case_id: the case.
        digest: hash of the image's voxels.
    """

    case_id: str
    digest: str


@dataclass(frozen=True)
class KeptFindings:
    """What is kept of the check of all training images, because it takes long.

    Attributes:
        findings: the warnings about the images.
        contents: content of each training image, by which the same image is found under several names.
    """

    findings: tuple[Finding, ...]
    contents: tuple[KeptContent, ...]


def findings_file(folder: Path, digest: str) -> Path:
    """Return the file of `KeptFindings` of a dataset.

    Args:
        folder: the dataset's folder of preprocessed cases.
        digest: hash of the dataset's content.
    """
    return folder / f"findings_{digest[:8]}.json"


def keep_findings(path: Path, findings: Sequence[Finding], contents: Mapping[str, str]) -> None:
    """Write what the check of all training images found.

    Args:
        path: the `findings_file`.
        findings: the warnings about the images.
        contents: training case -> hash of its image's voxels.

    Raises:
        StorageError: the disk cannot be written.
    """
    kept = KeptFindings(tuple(findings), tuple(KeptContent(*pair) for pair in contents.items()))
    write_json(path, asdict(kept))


def kept_findings(path: Path) -> KeptFindings | None:
    """Return what is kept; None if there is nothing, or it is damaged or of an earlier version.

    Args:
        path: the `findings_file`.
    """
    if not path.exists():
        return None
    try:
        content = read_json(path, OWN_BYTES)
        if not isinstance(content, list):
            return read_record(KeptFindings, content)
        reason = "an earlier version wrote it, without the hashes of the images"
    except UserError as error:
        reason = f"it is damaged: {str(error).removeprefix(f'{path}: ')}"
    log.warning("%s is not used (%s).", path, reason)
    return None


def dataset_findings(dataset: RawDataset, digest: str, root: Path) -> tuple[Finding, ...] | None:
    """Return the warnings about a dataset's listing and images; log those about the same image under several names.

    Those are looked for in each call, because groups and test images can change while the training cases stay.

    Args:
        dataset: the raw dataset, whose fingerprint exists.
        digest: hash of its content.
        root: folder of all preprocessed datasets.

    Returns:
        The warnings; None if those about the images are not kept.
    """
    folder = root / dataset.name
    kept = kept_findings(findings_file(folder, digest))
    contents = {} if kept is None else {entry.case_id: entry.digest for entry in kept.contents}
    try:
        twins = same_images(dataset, contents, folder)
    except StorageError:
        twins = same_images(dataset, contents, folder, update=False)
    if twins:
        log.warning("%s:\n%s", dataset.root, findings_table(twins))
    return None if kept is None else (*list_findings(dataset.root)[1], *kept.findings, *twins)
