"""Probabilities of an image as an npz file like nnU-Net's (key `probabilities`, float32).

They are not held in memory: the array is an uncompressed file, whose disk space is reserved first, and which is
compressed when it is complete.
"""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from umamba.io import atomic_path, partial_path, storage_errors


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
            archive.write(self._raw, "probabilities.npy")

    def discard(self) -> None:
        """Delete the uncompressed file."""
        self._raw.unlink(missing_ok=True)
