"""Decode the pixels of one DICOM file: the stored numbers, and the real values that its rescale slopes make of them.

pydicom reads uncompressed and run-length-coded pixels. ITK decodes the other compressions, from a copy of the file that
holds nothing but the pixels, because ITK also applies one slope to all frames and inverts MONOCHROME1. Sizes are
compared with the bytes of the file before memory is allocated: GDCM returns foreign memory where bytes are missing.
"""

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless

from umamba.io.errors import UserError
from umamba.io.itk import one_at_a_time

_PIXELS = {"PixelData": None, "FloatPixelData": np.float32, "DoubleFloatPixelData": np.float64}
_DESCRIPTION = (
    *("Rows", "Columns", "SamplesPerPixel", "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "NumberOfFrames"),
)
_SECONDARY_CAPTURE = UID("1.2.840.10008.5.1.4.1.1.7")
_MOST_EXPANDED = 10_000  # decoded bytes for each compressed one; constant images in JPEG 2000 come near it
_ALWAYS_ALLOWED = 1 << 26  # decoded bytes that need no such check


def check_deflated(path: Path) -> None:
    """Refuse a deflated DICOM file that grows more than a hundredfold, because pydicom inflates it in one piece.

    Args:
        path: the file.

    Raises:
        UserError: it grows to more than 64 MB and to more than a hundred times its size.
    """
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    size = path.stat().st_size
    with open(path, "rb") as stream:
        stream.seek(132 + 12 + int(meta.get("FileMetaInformationGroupLength", 0)))
        inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while chunk := inflate.unconsumed_tail or stream.read(1 << 16):
            total += len(inflate.decompress(chunk, 1 << 22))
            if total > max(_ALWAYS_ALLOWED, 100 * size):
                raise UserError(f"{path}: {size} deflated bytes grow to more than {total}. Export the file again.")
            if inflate.eof:
                break


def declared_shape(dataset: Dataset) -> tuple[int, int, int, int]:
    """Return the frames, rows, columns and samples of a pixel that a file declares.

    Args:
        dataset: the file's header.

    Raises:
        ValueError: one of them is missing or not positive.
    """
    shape = (
        int(dataset.get("NumberOfFrames") or 1),
        int(dataset.get("Rows") or 0),
        int(dataset.get("Columns") or 0),
        int(dataset.get("SamplesPerPixel") or 1),
    )
    if min(shape) < 1:
        raise ValueError(f"it declares {shape[0]} frame(s) of {shape[1]} x {shape[2]} pixels")
    return shape


def stored_values(dataset: Dataset) -> np.ndarray:
    """Decode the stored numbers of all frames.

    Args:
        dataset: the whole file.

    Returns:
        (F, Y, X) for grey files, (F, Y, X, 3) for colour, in the dtype of the file.

    Raises:
        ValueError: pixels are missing, are not the declared ones, or cannot be decoded here.
    """
    shape = declared_shape(dataset)
    element = next((keyword for keyword in _PIXELS if keyword in dataset), None)
    if element is None:
        raise ValueError("it holds no pixels")
    syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID") or ""))
    if not syntax.is_transfer_syntax:
        raise ValueError("its header names no transfer syntax")
    photometric = str(dataset.get("PhotometricInterpretation") or "")
    if syntax.is_encapsulated:
        _check_compressed(dataset, shape, syntax)
    else:
        _check_native(dataset, element, shape, photometric)
    by_pydicom = not syntax.is_encapsulated or syntax == RLELossless
    values = pixel_array(dataset) if by_pydicom else _by_itk(dataset, syntax, photometric)
    values = values.reshape(shape if shape[3] > 1 else shape[:3])
    if np.issubdtype(values.dtype, np.integer) and shape[3] == 1:
        values = _significant(values, dataset)
    if photometric == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def real_values(stored: np.ndarray, scales: Sequence[tuple[float, float]], table: Dataset | None = None) -> np.ndarray:
    """Return slope times stored number plus intercept, with the slope and the intercept of each frame.

    Args:
        stored: (F, Y, X) or (F, Y, X, C).
        scales: slope and intercept of each frame.
        table: a dataset with a Modality LUT Sequence, which then replaces the slopes.

    Returns:
        The same shape: integers if all slopes and intercepts are whole numbers, otherwise float64.
    """
    if table is not None:
        return np.asarray(apply_modality_lut(stored, table))
    if all(scale == (1.0, 0.0) for scale in scales):
        return stored
    whole = np.issubdtype(stored.dtype, np.integer) and all(number.is_integer() for scale in scales for number in scale)
    dtype: np.dtype = np.dtype(np.float64)
    if whole:
        ends = [
            int(slope) * int(end) + int(intercept)
            for frame, (slope, intercept) in zip(stored, scales, strict=True)
            for end in (frame.min(), frame.max())
        ]
        fitting = (kind for kind in (np.int16, np.int32, np.int64) if _fits(ends, np.dtype(kind)))
        dtype = np.dtype(next(fitting, np.float64))
    values = np.empty(stored.shape, dtype)
    exact = np.dtype(np.int64) if dtype.kind == "i" else dtype
    for index, (slope, intercept) in enumerate(scales):
        values[index] = stored[index].astype(exact) * exact.type(slope) + exact.type(intercept)
    return values


def _fits(ends: Sequence[int], dtype: np.dtype) -> bool:
    limits = np.iinfo(dtype)
    return limits.min <= min(ends) and max(ends) <= limits.max


def _check_native(dataset: Dataset, element: str, shape: tuple[int, ...], photometric: str) -> None:
    """Raise ValueError unless the uncompressed pixels are as many as declared."""
    frames, rows, columns, samples = shape
    dtype = _PIXELS[element]
    bits = int(dataset.get("BitsAllocated") or 0) if dtype is None else np.dtype(dtype).itemsize * 8
    if bits not in (1, 8, 16, 32, 64):
        raise ValueError(f"it declares {bits} bits a pixel")
    total = frames * rows * columns * samples * bits
    expected = -(-(total * 2 // 3 if photometric == "YBR_FULL_422" else total) // 8)
    actual = len(dataset[element].value or b"")
    if actual < expected:
        raise ValueError(f"it holds {actual} bytes of pixels, its header declares {expected}")
    if actual - expected >= max(2, expected // frames):
        raise ValueError(f"it holds {actual} bytes of pixels, at least a frame more than the declared {expected}")


def _check_compressed(dataset: Dataset, shape: tuple[int, ...], syntax: UID) -> None:
    """Raise ValueError unless there is a compressed frame of the declared size for each declared frame."""
    frames, rows, columns, samples = shape
    data = bytes(dataset.get("PixelData") or b"")
    decoded = frames * rows * columns * samples * -(-int(dataset.get("BitsAllocated") or 8) // 8)
    if decoded > max(_ALWAYS_ALLOWED, _MOST_EXPANDED * len(data)):
        raise ValueError(f"it holds {len(data)} compressed bytes, its header declares {decoded}")
    found = 0
    for frame in generate_frames(data, number_of_frames=frames):
        found += 1
        if syntax != RLELossless:
            _check_codestream(found, frame, (rows, columns, samples), int(dataset.get("BitsAllocated") or 8))
    if found != frames:
        raise ValueError(f"it holds {found} compressed frames, its header declares {frames}")


def _check_codestream(number: int, frame: bytes, declared: tuple[int, int, int], bits: int) -> None:
    """Raise ValueError if a JPEG, JPEG-LS or JPEG 2000 stream has another size or bytes a pixel than the file declares.

    GDCM's decoders trust these numbers and write beyond their memory where they are wrong.
    """
    if frame[:4] == b"\xff\x4f\xff\x51":
        found = _jpeg_2000_size(frame)
    elif frame[:2] == b"\xff\xd8":
        found = _jpeg_size(frame)
    else:
        return
    if found is None:
        raise ValueError(f"the header of its compressed frame {number} is damaged")
    rows, columns, samples, depth = found
    if (rows, columns, samples) != declared or -(-depth // 8) * 8 != bits:
        raise ValueError(
            f"its frame {number} is {rows} x {columns} pixels of {samples} x {depth} bits, its header declares "
            f"{declared[0]} x {declared[1]} of {declared[2]} x {bits}"
        )


def _jpeg_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """Return rows, columns, samples and bits of a JPEG or JPEG-LS stream; None if its frame header is damaged."""
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a filling byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            samples, factors = frame[at + 9], frame[at + 11 : at + 2 + length : 3]
            lossless = marker in (0xC3, 0xC7, 0xCB, 0xCF, 0xF7)
            allowed = (0x11,) if lossless else (0x11, 0x12, 0x21, 0x22, 0x41, 0x14)
            if length != 8 + 3 * samples or not all(factor in allowed for factor in factors):
                return None
            rows, columns = (int.from_bytes(frame[start : start + 2], "big") for start in (at + 5, at + 7))
            return rows, columns, samples, frame[at + 4]
        else:
            at += 2 + length
    return None


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """Return rows, columns, samples and bits of a JPEG 2000 stream; None if its size marker is damaged."""
    if len(frame) < 45:
        return None
    right, lower, left, upper, wide, high, first, top = struct.unpack(">8I", frame[8:40])
    length, samples = int.from_bytes(frame[4:6], "big"), int.from_bytes(frame[40:42], "big")
    parts = frame[42 : 4 + length]
    steps = set(parts[1::3]) | set(parts[2::3])
    if length != 38 + 3 * samples or len(parts) != 3 * samples or not samples or steps != {1} or not wide or not high:
        return None
    if first > left or top > upper or left >= right or upper >= lower or first + wide <= left or top + high <= upper:
        return None
    return lower - upper, right - left, samples, max((depth & 0x7F) + 1 for depth in parts[::3])


def _significant(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Return the stored bits of each number alone, with their sign; older files keep overlays in the other bits."""
    width = values.dtype.itemsize * 8
    stored = int(dataset.get("BitsStored") or width)
    high = int(dataset.get("HighBit") or stored - 1)
    if not 0 < stored <= width or not stored - 1 <= high < width:
        raise ValueError(f"it declares {stored} stored bits up to bit {high}, of {width}")
    if int(dataset.get("BitsAllocated") or width) != width or stored == width:
        return values
    unsigned = values.astype(values.dtype.newbyteorder("="), copy=False) << (width - 1 - high)
    return unsigned >> (width - stored)


def _by_itk(dataset: Dataset, syntax: UID, photometric: str) -> np.ndarray:
    """Decode compressed pixels with ITK."""
    copy = Dataset()
    for keyword in _DESCRIPTION:
        if keyword in dataset:
            copy[keyword] = dataset[keyword]
    grey = photometric in ("MONOCHROME1", "PALETTE COLOR")
    copy.PhotometricInterpretation = "MONOCHROME2" if grey else photometric
    copy.SOPClassUID, copy.SOPInstanceUID = _SECONDARY_CAPTURE, "1.2.3"
    copy.PixelData = dataset.PixelData
    copy["PixelData"].is_undefined_length = True
    copy.file_meta = FileMetaDataset()
    copy.file_meta.TransferSyntaxUID = syntax
    copy.file_meta.MediaStorageSOPClassUID, copy.file_meta.MediaStorageSOPInstanceUID = _SECONDARY_CAPTURE, UID("1.2.3")
    with TemporaryDirectory(prefix="umamba-dicom-") as folder:
        name = os.path.join(folder, "pixels.dcm")
        copy.save_as(name, enforce_file_format=True)
        try:
            with one_at_a_time:
                return np.asarray(sitk.GetArrayFromImage(_read(name)))
        except RuntimeError:
            raise ValueError(
                f"neither pydicom nor ITK decodes its pixels, which are compressed as {syntax.name}: they are damaged, "
                "or need to be decompressed first, for example with `gdcmconv --raw`"
            ) from None


def _read(name: str) -> Any:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(name)
    return reader.Execute()
