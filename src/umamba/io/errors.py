"""The exception for mistakes that the user can correct, and its subclass for a disk that cannot be written."""

import errno
import os
from pathlib import Path

_ROOM = "Make room there, or choose another folder."
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "The limit of this process for the size of a file is too low (ulimit -f).",
    errno.EEXIST: "A file stands where a folder is needed. Move it away, or choose another folder.",
    errno.ENOTDIR: "A file stands where a folder is needed. Move it away, or choose another folder.",
    errno.EISDIR: "A folder stands where a file is needed. Move it away, or choose another folder.",
    errno.EROFS: "The disk is mounted for reading only. Choose another folder.",
    errno.EACCES: "Ask for the permission to write there, or choose another folder.",
    errno.EIO: "The disk is damaged or was disconnected. Check it, then repeat the command.",
    errno.ESTALE: "The network file system has lost the file. Mount it again, then repeat the command.",
    errno.ETIMEDOUT: "The network file system does not answer. Repeat the command when it does.",
    errno.ELOOP: "A symbolic link stands where a file is needed. Remove it.",
}
# Whatever was being written: the disk is full or read-only, and trying other files there would fail, too.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_NO_MEMORY = ("allocate memory", "not enough memory", "out of memory")  # texts of PyTorch's and ITK's RuntimeErrors


class UserError(Exception):
    """A mistake in a file, a setting or the environment that the user can correct.

    The message names the file or key, what is wrong and what to do. The command line prints it without a traceback
    and ends with exit code 2.
    """

    def __str__(self) -> str:
        """Return the message; what a file's header or name has of controls for the terminal is shown, not obeyed."""
        from umamba.io.escape import printable_lines

        return printable_lines(super().__str__())


class StorageError(UserError, OSError):
    """The disk cannot be written, because it is full or read-only; trying other files would fail too.

    It is also an OSError, so that a writer that may fail without ending the program needs to catch only that.
    """

    def __str__(self) -> str:
        """Return the message alone; an OSError would put its number before it."""
        from umamba.io.escape import printable_lines

        return printable_lines(str(self.args[0]))


def storage_error(path: Path, error: OSError) -> StorageError:
    """Return the error that says why a path could not be written, and what to do.

    Args:
        path: the file or folder.
        error: what the system reported.
    """
    reason = os.strerror(error.errno) if error.errno else str(error)
    remedy = _REMEDIES.get(error.errno or 0, "Check disk space and permissions, or choose another folder.")
    found = StorageError(f"{path}: could not be written ({reason}). {remedy}")
    found.errno, found.strerror = error.errno, reason
    return found


def disk_error(error: OSError) -> StorageError | None:
    """Return the error for a full or read-only disk; None if the cause is another one.

    Args:
        error: an OSError of a library, which may name its file.
    """
    if error.errno not in _DISK:
        return None
    named = error.filename if isinstance(error.filename, str | os.PathLike) else None
    return storage_error(Path(named) if named else Path.cwd(), error)


def lack_of_memory(error: BaseException) -> str | None:
    """Return what a library says of memory that it could not allocate; None if the error has another cause.

    Args:
        error: any error. PyTorch's are known by their name and text, because this module does not load PyTorch.
    """
    lines = [line.strip().rstrip(".:") for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if any(text in line for text in _NO_MEMORY)), None)
    if isinstance(error, RuntimeError):
        known = said is not None or type(error).__name__ == "OutOfMemoryError"
    else:
        known = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return (said or next(iter(lines), "no further text")) if known else None
