"""Groups image files to cases: NAME_0000.ext, NAME_0001.ext, ... or a single file NAME.ext.

A folder that holds a DICOM series counts as a file of the folder's name. A single DICOM file is a case whatever its
name, because archives export names such as IM_0000.dcm, IM0001 or slice.ima.
"""

import logging
from pathlib import Path

from umamba.datasets import CHANNEL_NAME, RawCase
from umamba.io import UserError, holds_dicom, supported_endings
from umamba.io.dicom_mark import is_dicom

log = logging.getLogger(__name__)
_LOSSY = (".jpg", ".jpeg")


def list_cases(source: Path, num_channels: int) -> list[RawCase]:
    """List the cases of a folder by nnU-Net's naming, or the case of a single file or DICOM series.

    A case has a file for each channel, or a single file that holds all channels; the suffix `_0000` of a single file
    may be left out. For a file NAME_0000.ext the other channels are taken from its folder. Hidden files and files that
    are no images are ignored; a warning names JPEG files.

    Args:
        source: an image file, a folder of a DICOM series, or a folder of images and such folders.
        num_channels: channels of an image.

    Returns:
        The cases in the order of their names, without labels.

    Raises:
        UserError: there is no such folder or no image in it; or cases have missing or doubled channels, which one
            message lists.
    """
    cases, problems = find_cases(source, num_channels)
    if problems:
        raise UserError("These images cannot be used:\n" + "\n".join(problems.values()))
    return cases


def find_cases(source: Path, num_channels: int, *, warn: bool = True) -> tuple[list[RawCase], dict[str, str]]:
    """List the cases that can be read, and the problem of each one that cannot; see `list_cases`.

    Args:
        source: an image file, a folder of a DICOM series, or a folder of images and such folders.
        num_channels: channels of an image.
        warn: name JPEG files in a warning; false where the same folder was or will be listed with it.

    Returns:
        The cases, and case -> problem for those with missing or doubled channels and folders that cannot be read.

    Raises:
        UserError: there is no such folder, it cannot be read, or no image is in it.
    """
    source = Path(source)
    if source.is_file():
        return _case_of(source, num_channels, warn)
    if not source.is_dir():
        raise UserError(f"input: there is no file or folder {source}. Give an image or the folder that holds them.")
    try:
        series, paths = holds_dicom(source), sorted(source.iterdir())
    except OSError as error:
        raise UserError(f"input: {source} cannot be read ({error.strerror}). Check its permissions.") from None
    if series:
        return [RawCase(source.absolute().name, (source,), None)], {}
    return _group(source, paths, num_channels, warn)


def _case_of(path: Path, num_channels: int, warn: bool) -> tuple[list[RawCase], dict[str, str]]:
    if is_dicom(path) or path.suffix.lower() == ".dcm":
        # The last number of a name such as 1.2.840.7 is no ending.
        return [RawCase(path.name if path.suffix[1:].isdigit() else path.stem, (path,), None)], {}
    stem = _stem(path)
    if stem is None:
        raise UserError(
            f"input: {path} is no image. Give a file that ends in {', '.join(supported_endings())}, or DICOM."
        )
    match = CHANNEL_NAME.match(stem)
    if match is None or int(match["channel"]) != 0:
        return [RawCase(stem, (path,), None)], {}
    ending = path.name[len(stem) :]
    names = [f"{match['case']}_{channel:04d}{ending}" for channel in range(num_channels)]
    siblings = [path.with_name(name) for name in names if path.with_name(name).exists()]
    return _group(path.parent, siblings, num_channels, warn)


def _group(folder: Path, paths: list[Path], num_channels: int, warn: bool) -> tuple[list[RawCase], dict[str, str]]:
    found: dict[str, dict[int, Path]] = {}
    problems: dict[str, str] = {}
    for path in paths:
        try:
            stem = _stem(path)
        except OSError as error:
            problems[path.name] = f"{path}: cannot be read ({error.strerror}). Check its permissions."
            continue
        if stem is None:
            continue
        match = CHANNEL_NAME.match(stem)
        is_channel = match is not None and int(match["channel"]) < num_channels
        case, channel = (match["case"], int(match["channel"])) if match and is_channel else (stem, 0)
        files = found.setdefault(case, {})
        if channel in files:
            problems[case] = f"{path}: {files[channel].name} has the same case and channel. Keep one of them."
        files.setdefault(channel, path)
    skipped = sorted(path.name for path in paths if path.suffix.lower() in _LOSSY)
    if skipped and warn:
        log.warning(
            "%d JPEG files in %s, such as %s, are left out, because their compression changes voxels. Give PNG files.",
            *(len(skipped), folder, skipped[0]),
        )
    if not found and not problems:
        raise UserError(
            f"input: no images in {folder}. Put files there that end in {', '.join(supported_endings())}, or DICOM "
            "series, each in a folder of its own."
        )
    for case, files in found.items():
        missing = [channel for channel in range(num_channels) if channel not in files]
        if missing and set(files) != {0}:
            names = ", ".join(f"{case}_{channel:04d}" for channel in missing)
            problems[case] = (
                f"{folder / case}: the files of {names} are missing. Add them, or one file with all channels."
            )
    cases = [
        RawCase(case, tuple(files[channel] for channel in sorted(files)), None)
        for case, files in sorted(found.items())
        if case not in problems
    ]
    return cases, problems


def _stem(path: Path) -> str | None:
    """Return the name without its image ending; None if it is no image."""
    if path.name.startswith("."):
        return None
    if path.is_dir():
        return path.name if holds_dicom(path) else None
    for ending in supported_endings():
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return None
