"""Probabilities of an image as an npz file like nnU-Net's (key `probabilities`, float32), not held in memory.

The array is filled in an uncompressed file, whose space is reserved first, and packed when it is complete.
"""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from umamba.io import atomic_path, partial_path, storage_errors


class ProbabilitiesFile:
    """An array (num_classes, Z, Y, X) float32 that becomes an npz file."""

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        """Reserve the space; StorageError if there is not enough."""
        self._path = path
        self._raw = partial_path(path.with_suffix(".npy"))
        header = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
        with storage_errors(path):
            try:
                with open(self._raw, "wb") as stream:
                    np.lib.format.write_array_header_1_0(stream, header)
                    offset = stream.tell()
                    os.posix_fallocate(stream.fileno(), offset, 4 * int(np.prod(shape)))
            except OSError:
                self.discard()
                raise
        self.array = np.memmap(self._raw, np.float32, "r+", offset, tuple(shape))

    def save(self) -> None:
        """Write the npz file, atomically; StorageError if there is no space."""
        self.array.flush()
        with (
            storage_errors(self._path),
            atomic_path(self._path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        ):
            archive.write(self._raw, "probabilities.npy")

    def discard(self) -> None:
        """Remove what is no longer needed."""
        self._raw.unlink(missing_ok=True)
