"""The cases that could not be segmented, each with its reason; only a disk that cannot be written ends all cases."""

import errno
import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from umamba.io import StorageError, UserError, atomic_path, storage_errors
from umamba.io.errors import lack_of_memory

log = logging.getLogger(__name__)

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class UnsegmentedCases(UserError):
    """Some images could not be segmented, or not with all their exports; the others are."""


class IncompleteCase(UserError):
    """The segmentation of a case is written, but not all that was asked for beside it."""


class Problems:
    """Reasons by case, in the order in which they were found.

    Attributes:
        reasons: case -> why it could not be segmented, or not completely.
    """

    def __init__(self, tracebacks: Path) -> None:
        """Begin without problems.

        Args:
            tracebacks: text file for the tracebacks of faults in the program; made only if there is one.
        """
        self.reasons: dict[str, str] = {}
        self._incomplete: set[str] = set()
        self._tracebacks, self._written = tracebacks, ""

    @contextmanager
    def noting(self, case_id: str) -> Iterator[None]:
        """Note whatever ends the block as the problem of a case.

        Args:
            case_id: the case.

        Raises:
            StorageError: the disk cannot be written, which concerns all cases.
        """
        try:
            yield
        except StorageError:
            raise
        except UserError as error:
            self.reasons[case_id] = str(error)
            if isinstance(error, IncompleteCase):
                self._incomplete.add(case_id)
        except Exception as error:
            self.reasons[case_id] = self._reason(case_id, error)

    def error(self, total: int, folder: Path) -> UnsegmentedCases:
        """Return the error that names all cases with their reasons.

        Args:
            total: number of all cases.
            folder: where the segmentations of the others are.
        """
        count = len(self.reasons)
        what = "are segmented without all exports" if len(self._incomplete) == count else "could not be segmented"
        others = "" if count >= total else f", the others are in {folder}"
        reasons = "\n".join(f"{case}: {reason}" for case, reason in self.reasons.items())
        return UnsegmentedCases(f"{count} of {total} images {what}{others}:\n{reasons}")

    def _reason(self, case_id: str, error: Exception) -> str:
        lack = lack_of_memory(error)
        if lack is not None:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return (
                f"the memory does not suffice ({lack}). Give max_memory_gb a value below the memory of "
                "this machine, workers=1, or another device."
            )
        if isinstance(error, OSError):
            reason = os.strerror(error.errno) if error.errno else str(error)
            if error.errno in _DISK:
                raise StorageError(
                    f"{error.filename or self._tracebacks.parent}: could not be written ({reason}). Check disk space "
                    "and permissions."
                ) from None
            return f"{error.filename or 'a file'}: cannot be used ({reason}). Check the file and its permissions."
        text = "".join(traceback.format_exception(error))
        log.debug("%s:\n%s", case_id, text)
        self._written += f"{case_id}\n{text}\n"
        with storage_errors(self._tracebacks), atomic_path(self._tracebacks) as temporary:
            temporary.write_text(self._written, encoding="utf-8")
        return (
            f"{type(error).__name__}: {_first_line(error)}. This is a fault of the program or an image that it does "
            f"not foresee; {self._tracebacks} says where. Please report it with the image's header."
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else "no further text"
