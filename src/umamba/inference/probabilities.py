"""Probabilities of an image as an npz file like nnU-Net's (key `probabilities`, float32).

They are not held in memory: the array is an uncompressed file, whose disk space is reserved first, and which is
compressed when it is complete.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from umamba.io import UserError, atomic_path, partial_path, storage_errors

_ENTRY = "probabilities.npy"
_REMEDY = "Delete it, or predict the case again with probabilities."


class ProbabilitiesFile:
    """An array on disk that becomes an npz file.

    Attributes:
        array: (num_classes, Z, Y, X) float32, mapped to an uncompressed file beside the npz file.
    """

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        """Reserve the disk space.

        Args:
            path: the npz file.
            shape: (num_classes, Z, Y, X).

        Raises:
            StorageError: there is not enough space.
        """
        self._path = path
        self._raw = partial_path(path.with_suffix(".npy"))
        header = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
        with storage_errors(path):
            try:
                with open(self._raw, "wb") as stream:
                    np.lib.format.write_array_header_1_0(stream, header)
                    offset = stream.tell()
                    plane = bytes(4 * math.prod(shape[2:]))
                    # Zeros are really written, because a full disk would kill the process when it fills a mapped file.
                    for _ in range(shape[0] * shape[1]):
                        stream.write(plane)
            except OSError:
                self.discard()
                raise
        self.array = np.memmap(self._raw, np.float32, "r+", offset, tuple(shape))

    def save(self) -> None:
        """Write the npz file in one step.

        Raises:
            StorageError: there is not enough space.
        """
        self.array.flush()
        with (
            storage_errors(self._path),
            atomic_path(self._path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        ):
            archive.write(self._raw, _ENTRY)

    def discard(self) -> None:
        """Delete the uncompressed file."""
        self._raw.unlink(missing_ok=True)


def read_probabilities(path: Path, shape: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the probabilities of one class after the other, so that only those of one are in memory.

    Args:
        path: an npz file of this project or of nnU-Net.
        shape: (num_classes, Z, Y, X) that it must have.

    Yields:
        Floating-point numbers (Z, Y, X).

    Raises:
        UserError: the file cannot be read, has another shape, or holds other numbers than probabilities.
    """
    wanted = tuple(shape)
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_ENTRY) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            found, by_columns, dtype = read(stream)
            if found != wanted or by_columns or dtype.kind != "f":
                raise ValueError(f"it holds {dtype} of the shape {found}, not probabilities of the shape {wanted}")
            size = dtype.itemsize * math.prod(wanted[1:])
            for _ in range(wanted[0]):
                content = stream.read(size)
                if len(content) < size:
                    raise ValueError("its end is missing")
                values = np.frombuffer(content, dtype).reshape(wanted[1:])
                if not (values.min() >= 0 and values.max() <= 1):  # also if a value is NaN
                    raise ValueError("it holds values that are not from 0 to 1")
                yield values
    except (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as probabilities ({error}). {_REMEDY}") from error
