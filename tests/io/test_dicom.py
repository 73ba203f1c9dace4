"""Reading DICOM, against pydicom's numbers, ITK's geometry of plain series, and arithmetic by hand."""

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image as pillow
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)

from umamba.io import UserError, read_image
from umamba.io.dicom import declared_voxels, kept_locale, series_files

Refusal = Callable[[Path], str]

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
STRAIGHT = [1, 0, 0, 0, 1, 0]
VOLUME = np.random.default_rng(0).integers(0, 2000, (6, 5, 7)).astype(np.uint16)


def header(path: Path, shape: tuple[int, int] = (5, 7), sop_class: str = CT, **changes: Any) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, b"\0" * 128, meta, is_implicit_VR=False, is_little_endian=True)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "CT", "1.2.3", "1.2.4"
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def write_slice(folder: Path, z: int, name: str = "", **changes: Any) -> Path:
    """Write slice z of VOLUME at 2 mm a slice, with pixels of 0.9 x 0.7 mm."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"{z}.dcm")
    usual: dict[str, Any] = {
        "ImagePositionPatient": [10, -20, 30 + 2 * z],
        "ImageOrientationPatient": STRAIGHT,
        "PixelSpacing": [0.9, 0.7],
        "SliceThickness": 3,
        "PixelData": VOLUME[z].tobytes(),
    }
    header(path, **(usual | changes)).save_as(path, enforce_file_format=True)
    return path


def write_enhanced(path: Path, order: list[int], scales: dict[int, tuple[float, float]], **changes: Any) -> None:
    """Write slices of VOLUME as the frames of one file, 2 mm apart, each with its slope and intercept."""
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SpacingBetweenSlices = [0.9, 0.7], 2
    plane.ImageOrientationPatient = STRAIGHT
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    groups = []
    for z in order:
        group, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [10, -20, 30 + 2 * z]
        values.RescaleSlope, values.RescaleIntercept = scales.get(z, (1, -1024))
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [values]
        groups.append(group)
    usual: dict[str, Any] = {
        "NumberOfFrames": len(order),
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": groups,
        "PixelData": VOLUME[order].tobytes(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    header(path, sop_class=ENHANCED_CT, **(usual | changes)).save_as(path, enforce_file_format=True)


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    for z in range(6):
        write_slice(tmp_path, z, RescaleSlope=0.5 + z, RescaleIntercept=-10 * z)
    expected = [VOLUME[z] * (0.5 + z) - 10.0 * z for z in range(6)]
    np.testing.assert_array_equal(read_image([tmp_path]).array[0], expected)


def test_whole_slopes_give_whole_numbers(tmp_path: Path) -> None:
    for z in range(6):
        write_slice(tmp_path, z, RescaleSlope=1, RescaleIntercept=-1024)
    array = read_image([tmp_path]).array
    assert array.dtype == np.int16
    np.testing.assert_array_equal(array[0], VOLUME.astype(int) - 1024)


def test_a_plain_series_has_the_geometry_that_itk_gives_it(tmp_path: Path) -> None:
    oblique = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
    for z in range(6):
        position = np.array([10, -20, 30]) + 2.5 * z * oblique[:, 2]
        write_slice(
            tmp_path,
            z,
            f"{9 - z}.dcm",
            ImagePositionPatient=[round(value, 6) for value in position.tolist()],
            ImageOrientationPatient=[*oblique[:, 0], *oblique[:, 1]],
        )
    reader = sitk.ImageSeriesReader()
    with kept_locale():
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
        theirs = reader.Execute()
    image = read_image([tmp_path])
    np.testing.assert_array_equal(image.array[0], sitk.GetArrayFromImage(theirs))
    np.testing.assert_array_equal(image.array[0], VOLUME)
    np.testing.assert_allclose(image.geometry.spacing, theirs.GetSpacing()[::-1], rtol=1e-6)
    np.testing.assert_allclose(image.geometry.spacing, (2.5, 0.9, 0.7), rtol=1e-6)
    np.testing.assert_allclose(image.geometry.origin_xyz, theirs.GetOrigin(), atol=1e-6)
    np.testing.assert_allclose(image.geometry.direction_xyz, theirs.GetDirection(), atol=1e-6)


def test_monochrome1_keeps_its_numbers(tmp_path: Path) -> None:
    for z in range(6):
        write_slice(tmp_path, z, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read_image([tmp_path]).array[0], VOLUME)
    np.testing.assert_array_equal(VOLUME[3], pydicom.dcmread(tmp_path / "3.dcm").pixel_array)


def test_frames_are_sorted_and_scaled(tmp_path: Path) -> None:
    order = [0, 2, 4, 1, 3, 5]
    write_enhanced(tmp_path / "series" / "a.dcm", order, {3: (2.5, 7.0)})
    expected = VOLUME - 1024.0
    expected[3] = VOLUME[3] * 2.5 + 7
    for path in (tmp_path / "series", tmp_path / "series" / "a.dcm"):
        image = read_image([path])
        np.testing.assert_array_equal(image.array[0], expected)
        np.testing.assert_allclose(image.geometry.spacing, (2, 0.9, 0.7))
        np.testing.assert_allclose(image.geometry.origin_xyz, (10, -20, 30))


def test_missing_and_doubled_frames_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    write_enhanced(tmp_path / "gap.dcm", [0, 1, 2, 4, 5], {})
    assert "not evenly spaced: 4 mm between frame 3 and frame 4, 2 mm elsewhere" in refusal(tmp_path / "gap.dcm")
    write_enhanced(tmp_path / "twice.dcm", [0, 1, 1, 2, 3], {})
    assert "0 mm between frame 2 and frame 3" in refusal(tmp_path / "twice.dcm")
    write_enhanced(tmp_path / "phases.dcm", [1, 1, 1, 1], {})
    assert "not evenly spaced" in refusal(tmp_path / "phases.dcm")


def test_gantry_tilt_is_refused_with_its_angle(tmp_path: Path, refusal: Refusal) -> None:
    for z in range(6):
        shift = 2 * z * float(np.tan(np.radians(20)))
        write_slice(tmp_path / "tilt", z, ImagePositionPatient=[10, round(-20 + shift, 6), 30 + 2 * z])
        write_slice(tmp_path / "rounded", z, ImagePositionPatient=[10, -20 + 0.001 * z, 30 + 2 * z])
    said = refusal(tmp_path / "tilt")
    assert "tilt of about 20 degrees" in said
    assert "dcm2niix" in said
    np.testing.assert_allclose(read_image([tmp_path / "rounded"]).geometry.spacing, (2, 0.9, 0.7))


@pytest.mark.parametrize("missing", [1, 2, 35, 69, 70])
def test_too_few_pixels_are_refused(tmp_path: Path, missing: int, refusal: Refusal) -> None:
    for z in range(6):
        write_slice(tmp_path / "series", z)
    short = VOLUME[2].tobytes()[: 70 - missing]
    write_slice(tmp_path / "series", 2, PixelData=short + b"\0" * (len(short) % 2))
    said = refusal(tmp_path / "series") if missing > 1 else ""
    assert missing == 1 or "2.dcm" in said
    write_enhanced(tmp_path / "a.dcm", list(range(6)), {}, PixelData=VOLUME.tobytes()[: 420 - 2 * missing])
    assert f"holds {420 - 2 * missing} bytes of pixels, its header declares 420" in refusal(tmp_path / "a.dcm")


def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path: Path, refusal: Refusal) -> None:
    write_enhanced(tmp_path / "a.dcm", list(range(6)), {})
    content = (tmp_path / "a.dcm").read_bytes()
    for end in range(140, len(content), 7):
        (tmp_path / "a.dcm").write_bytes(content[:end])
        refusal(tmp_path / "a.dcm")


def test_sizes_that_lie_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    write_slice(tmp_path, 0, "rows.dcm", Rows=60000, Columns=60000)
    assert "its header declares 7200000000" in refusal(tmp_path / "rows.dcm")
    write_slice(tmp_path, 0, "frames.dcm", PixelData=VOLUME.tobytes())
    assert "at least a frame more" in refusal(tmp_path / "frames.dcm")
    write_slice(tmp_path, 0, "none.dcm", Rows=0)
    assert "0 x 7 pixels" in refusal(tmp_path / "none.dcm")


def compressed(folder: Path, voxels: np.ndarray, syntax: str) -> list[bytes]:
    """Return compressed frames of (Z, Y, X): JPEG 2000 by Pillow, lossless JPEG by ITK."""
    frames = []
    for plane in voxels:
        if syntax == JPEG2000Lossless:
            stream = io.BytesIO()
            pillow.fromarray(plane).save(stream, "JPEG2000", no_jp2=True, irreversible=False, num_resolutions=1)
            frames.append(stream.getvalue())
            continue
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetUseCompression(True)
        writer.SetCompressor("JPEG")
        writer.SetFileName(str(folder / "jpeg.dcm"))
        with kept_locale():
            writer.Execute(sitk.GetImageFromArray(plane[None]))
        written = pydicom.dcmread(folder / "jpeg.dcm")
        assert written.file_meta.TransferSyntaxUID == syntax
        frames += list(generate_frames(written.PixelData, number_of_frames=1))
    return frames


@pytest.mark.parametrize(
    ("syntax", "kind"), [(JPEG2000Lossless, np.uint16), (JPEGLosslessSV1, np.uint16), (JPEGLosslessSV1, np.int16)]
)
def test_compressed_frames(tmp_path: Path, syntax: str, kind: type, refusal: Refusal) -> None:
    voxels: np.ndarray = (VOLUME.astype(int) - (500 if kind is np.int16 else 0)).astype(kind)
    frames = compressed(tmp_path, voxels, syntax)
    path = tmp_path / "enhanced" / "a.dcm"
    write_enhanced(path, [5, 4, 3, 2, 1, 0], {3: (2.5, 7.0)}, PixelRepresentation=int(kind is np.int16))
    dataset = pydicom.dcmread(path)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate(frames[::-1])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    expected = voxels - 1024.0
    expected[3] = voxels[3] * 2.5 + 7
    np.testing.assert_array_equal(read_image([path.parent]).array[0], expected)
    dataset.Rows = 9
    dataset.save_as(path)
    assert "frame 1 is 5 x 7 pixels of 1 x 16 bits, its header declares 9 x 7 of 1 x 16" in refusal(path)
    dataset.Rows, dataset.PixelData = 5, encapsulate(frames[:4])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    assert "compressed frames" in refusal(path) or "not a readable" in refusal(path)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1])
def test_damaged_compressed_frames_end_no_process(tmp_path: Path, syntax: str) -> None:
    """GDCM writes beyond its memory where the header of a JPEG stream lies about its size or depth."""
    path = tmp_path / "a.dcm"
    write_enhanced(path, list(range(6)), {})
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate(compressed(tmp_path, VOLUME, syntax))
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    content = path.read_bytes()
    start = content.find(b"\xff\x4f\xff\x51" if syntax == JPEG2000Lossless else b"\xff\xd8")
    for at in range(start + 2, start + 60):
        for value in (0, 163, 255):
            path.write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
            with suppress(UserError):
                assert read_image([path]).array.shape == (1, 6, 5, 7)


def test_run_lengths_and_deflate(tmp_path: Path, refusal: Refusal) -> None:
    for z in range(6):
        path = write_slice(tmp_path / "rle", z)
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
        path = write_slice(tmp_path / "deflate", z)
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        dataset.save_as(path)
    for name in ("rle", "deflate"):
        np.testing.assert_array_equal(read_image([tmp_path / name]).array[0], VOLUME)
    dataset.PixelData = b"\0" * (80 << 20)
    dataset.save_as(tmp_path / "bomb.dcm")
    assert "deflated bytes grow to more than" in refusal(tmp_path / "bomb.dcm")


def test_unknown_compression_is_one_sentence(tmp_path: Path, refusal: Refusal) -> None:
    path = write_slice(tmp_path, 0)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")
    dataset.PixelData = encapsulate([b"\0\0\0\1" * 20])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    assert "compressed as MPEG-4 AVC/H.264" in refusal(path)


def test_bits_beside_the_stored_ones_are_left_out(tmp_path: Path) -> None:
    """Older files keep an overlay in the high bits; twelve signed bits need their sign."""
    plane = np.array([[0x0FFF, 0x0001], [0xF7FF, 0x8800]], np.uint16)
    write_slice(tmp_path, 0, "unsigned.dcm", Rows=2, Columns=2, BitsStored=12, HighBit=11, PixelData=plane.tobytes())
    assert read_image([tmp_path / "unsigned.dcm"]).array.ravel().tolist() == [4095, 1, 2047, 2048]
    write_slice(
        *(tmp_path, 0, "signed.dcm"), Rows=2, Columns=2, BitsStored=12, HighBit=11, PixelRepresentation=1,
        PixelData=plane.tobytes(),
    )  # fmt: skip
    assert read_image([tmp_path / "signed.dcm"]).array.ravel().tolist() == [-1, 1, 2047, -2048]


def test_series_of_other_kinds(tmp_path: Path, refusal: Refusal) -> None:
    for z in range(6):
        write_slice(tmp_path / "mixed", z, ImageOrientationPatient=[0, 1, 0, 0, 0, 1] if z == 3 else STRAIGHT)
        write_slice(tmp_path / "spacing", z, PixelSpacing=[0.9, 0.8] if z == 3 else [0.9, 0.7])
        write_slice(tmp_path / "two", z, SeriesInstanceUID="1.2.5" if z == 3 else "1.2.4")
        write_slice(tmp_path / "nowhere", z, ImagePositionPatient=None if z == 3 else [10, -20, 30 + 2 * z])
        write_slice(tmp_path / "slope", z, RescaleSlope=0 if z == 3 else 1, RescaleIntercept=0)
        if z != 3:
            write_slice(tmp_path / "size", z)
    write_slice(tmp_path / "size", 3, Rows=7, Columns=5)
    assert "orientation of 0.dcm and 3.dcm differ" in refusal(tmp_path / "mixed")
    assert "pixel spacing of 0.dcm and 3.dcm differ" in refusal(tmp_path / "spacing")
    assert "2 DICOM series (1.2.4, 1.2.5)" in refusal(tmp_path / "two")
    assert "no position" in refusal_of_file(tmp_path / "nowhere", "3.dcm")
    assert "slope 0" in refusal_of_file(tmp_path / "slope", "3.dcm")
    assert "differ in size: (5, 7) and (7, 5)" in refusal(tmp_path / "size")


def refusal_of_file(folder: Path, name: str) -> str:
    with pytest.raises(UserError, match=name) as error:
        read_image([folder])
    return str(error.value)


def test_reports_and_directories_are_no_slices(tmp_path: Path) -> None:
    for z in range(6):
        write_slice(tmp_path, z)
    report = header(tmp_path / "report.dcm", sop_class="1.2.840.10008.5.1.4.1.1.88.11", SeriesInstanceUID="1.2.9")
    for keyword in ("Rows", "Columns"):
        del report[keyword]
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    assert [path.name for path in series_files(tmp_path)] == [f"{z}.dcm" for z in range(6)]
    np.testing.assert_array_equal(read_image([tmp_path]).array[0], VOLUME)


def test_a_slice_cut_before_its_pixels_is_no_missing_slice(tmp_path: Path) -> None:
    for z in range(6):
        write_slice(tmp_path, z)
    content = (tmp_path / "5.dcm").read_bytes()
    for end in range(133, len(content), 9):
        (tmp_path / "5.dcm").write_bytes(content[:end])
        refusal_of_file(tmp_path, "5.dcm")


def test_frames_that_state_a_distance_only(tmp_path: Path, refusal: Refusal) -> None:
    place = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": STRAIGHT, "PixelSpacing": [0.9, 0.7]}
    stack = {**place, "NumberOfFrames": 6, "PixelData": VOLUME.tobytes()}
    dose = {"GridFrameOffsetVector": [0, 3, 6, 9, 12, 15], "DoseGridScaling": 0.25}
    write_slice(tmp_path, 0, "dose.dcm", **stack, **dose)
    image = read_image([tmp_path / "dose.dcm"])
    np.testing.assert_array_equal(image.array[0], VOLUME * 0.25)
    np.testing.assert_allclose(image.geometry.spacing, (3, 0.9, 0.7))
    write_slice(tmp_path, 0, "nuclear.dcm", **stack, SpacingBetweenSlices=4, FrameIncrementPointer=0x00540080)
    np.testing.assert_allclose(read_image([tmp_path / "nuclear.dcm"]).geometry.spacing, (4, 0.9, 0.7))
    write_slice(tmp_path, 0, "cine.dcm", **stack, FrameIncrementPointer=0x00181063)
    assert "moments in time" in refusal(tmp_path / "cine.dcm")


def test_tables_and_colours(tmp_path: Path) -> None:
    plane = np.arange(35, dtype=np.uint16).reshape(5, 7) % 4
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4, 0, 16], "HU"
    table.add_new("LUTData", "US", [7, 5, 300, 1])
    write_slice(tmp_path, 0, "table.dcm", PixelData=plane.tobytes(), ModalityLUTSequence=[table])
    np.testing.assert_array_equal(read_image([tmp_path / "table.dcm"]).array[0, 0], np.array([7, 5, 300, 1])[plane])
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    eight: dict[str, Any] = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    write_slice(
        *(tmp_path, 0, "rgb.dcm"), **eight, SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="RGB",
        PixelData=colours.tobytes() + b"\0",
    )  # fmt: skip
    np.testing.assert_array_equal(read_image([tmp_path / "rgb.dcm"]).array[:, 0], colours.transpose(2, 0, 1))


def test_files_without_the_mark_are_read(tmp_path: Path) -> None:
    for z in range(6):
        path = write_slice(tmp_path, z)
        if z != 2:
            content = path.read_bytes()
            meta = pydicom.filereader.read_file_meta_info(path)
            path.write_bytes(content[132 + 12 + meta.FileMetaInformationGroupLength :])
    np.testing.assert_array_equal(read_image([tmp_path]).array[0], VOLUME)
    assert declared_voxels(tmp_path) == VOLUME.size
    assert declared_voxels(tmp_path / "2.dcm") == 35


def test_flipped_bytes_end_in_one_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever byte of the header is another, the answer is an image or one UserError that names the file."""
    write_enhanced(tmp_path / "a.dcm", list(range(6)), {})
    content = (tmp_path / "a.dcm").read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(132, len(content) - VOLUME.nbytes, 150).tolist():
        changed = bytearray(content)
        changed[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.dcm").write_bytes(changed)
        with suppress(UserError):
            assert read_image([tmp_path / "a.dcm"]).array.shape[1] == 6
    out, err = capfd.readouterr()
    assert out + err == ""
