"""Which images of a folder belong together: one case is NAME_0000.ext, NAME_0001.ext, ... or a single file NAME.ext."""

import re
from pathlib import Path

from umamba.datasets import RawCase
from umamba.io import UserError, supported_endings

_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


def list_cases(folder: Path, num_channels: int) -> list[RawCase]:
    """List the images of a folder by nnU-Net's naming, sorted by name.

    A case has a file for each channel, or a single file that holds them all; the suffix `_0000` of the latter may be
    left out. Hidden files and files of other kinds are passed over.

    Raises:
        UserError: there is no such folder or no image in it, or, all together, cases with missing or doubled channels.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"input: there is no folder {folder}. Give the folder that holds the images.")
    found: dict[str, dict[int, Path]] = {}
    problems = []
    for path in sorted(folder.iterdir()):
        stem = _stem(path)
        if stem is None:
            continue
        match = _CHANNEL.match(stem)
        is_channel = match is not None and int(match["channel"]) < num_channels
        case, channel = (match["case"], int(match["channel"])) if match and is_channel else (stem, 0)
        files = found.setdefault(case, {})
        if channel in files:
            problems.append(f"{path}: {files[channel].name} is the same case and channel. Keep one of them.")
        files.setdefault(channel, path)
    if not found:
        raise UserError(f"input: no images in {folder}. It reads {', '.join(supported_endings())}.")
    for case, files in found.items():
        missing = [channel for channel in range(num_channels) if channel not in files]
        if missing and set(files) != {0}:
            names = ", ".join(f"{case}_{channel:04d}" for channel in missing)
            problems.append(
                f"{folder / case}: the files of {names} are missing. Add them, or one file with all channels."
            )
    if problems:
        raise UserError("These images cannot be used:\n" + "\n".join(problems))
    return [
        RawCase(case, tuple(files[channel] for channel in sorted(files)), None) for case, files in sorted(found.items())
    ]


def _stem(path: Path) -> str | None:
    """Return the name without its image ending; None for anything that is no image."""
    if path.name.startswith(".") or not path.is_file():
        return None
    for ending in supported_endings():
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return None
