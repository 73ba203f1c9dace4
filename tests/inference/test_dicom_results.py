"""Results in DICOM: where they lie in the patient, what they refer to and what their labels are called.

The series are made here from their directions, and read back with arithmetic of the tests' own: highdicom and pydicom
read segmentations, ITK decodes them once more, and matplotlib decides which centres of pixels lie inside contours.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from matplotlib.path import Path as Outline
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes as known_codes
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from torch import Tensor, cat, nn

from umamba.inference import Predictor
from umamba.inference.dicom_objects import Maker
from umamba.inference.dicom_results import write_form
from umamba.inference.rtstruct import rings
from umamba.inference.secondary_capture import direction_letters
from umamba.io import UserError, read_image
from umamba.io.dicom_planes import Plane, read_planes
from umamba.labels import LabelSet, codes
from umamba.labels.codes import PRIVATE, label_codes
from umamba.settings import InvalidSettings, PredictionSettings
from umamba.settings.prediction import ExportForm

highdicom = pytest.importorskip("highdicom")

CT = UID("1.2.840.10008.5.1.4.1.1.2")
SHAPE = (4, 6, 8)  # pixels of a slice fill whole bytes: GDCM cannot tell frames apart whose bits do not
SPACING, DISTANCE, ORIGIN = (0.9, 0.7), 2.0, np.array([10.0, -20.0, 30.0])
LABELS = LabelSet(("liver", "left kidney", "blob"), ((1,), (2,), (3,)))
FORMS: tuple[ExportForm, ...] = ("dicom_seg", "dicom_labelmap", "rtstruct", "secondary_capture")
MAKER = Maker("1.2", "0123456789abcdef")
# An asymmetric marker: two blocks, a ring around a hole with an island in it, a voxel in a corner.
MARKER = np.zeros(SHAPE, np.uint8)
MARKER[1:3, 0:2, 0:5] = 1
MARKER[1, 2:4, 0:2] = 1
MARKER[0:3, 2:6, 2:7] = np.array([[3, 3, 3, 3, 3], [3, 0, 0, 0, 3], [3, 0, 2, 0, 3], [3, 3, 3, 3, 3]])
MARKER[3, 5, 0] = 2
RIGHT_ANGLES = [
    np.array([row, column])
    for row, column in itertools.product(np.concatenate([np.eye(3), -np.eye(3)]), repeat=2)
    if row @ column == 0
]
EULER = {"straight": (0.0, 0.0), "oblique": (0.0, 25.0), "doubly oblique": (17.0, 33.0)}


def turned(axes: np.ndarray, name: str) -> np.ndarray:
    """Turn two directions about X, then about Z, by the angles of an obliquity."""
    about_x, about_z = (math.radians(angle) for angle in EULER[name])
    first = np.array([[1, 0, 0], [0, math.cos(about_x), -math.sin(about_x)], [0, math.sin(about_x), math.cos(about_x)]])
    second = np.array(
        [[math.cos(about_z), -math.sin(about_z), 0], [math.sin(about_z), math.cos(about_z), 0], [0, 0, 1]]
    )
    return axes @ (second @ first).T


class Series:
    """A series on disk, whose places are known by construction."""

    def __init__(self, folder: Path, axes: np.ndarray, tilt: float = 0.0, backwards: bool = False, **more: Any) -> None:
        """Write SHAPE voxels; slice z lies z steps along the normal, which a tilt shifts down the columns."""
        folder.mkdir(parents=True)
        self.folder, self.axes, self.planes = folder, axes, list[Plane]()
        normal = np.cross(*axes)
        step = DISTANCE * normal + DISTANCE * math.tan(math.radians(tilt)) * axes[1]
        self.positions = [ORIGIN + z * step for z in range(SHAPE[0])]
        self.uids = [generate_uid(entropy_srcs=[str(folder), str(z)]) for z in range(SHAPE[0])]
        self.voxels = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
        for z, position in enumerate(self.positions):
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CT, UID(self.uids[z])
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            place = SHAPE[0] - z if backwards else z + 1
            path = folder / f"{place}.dcm"
            ds = FileDataset(str(path), {}, b"\0" * 128, meta, is_implicit_VR=False, is_little_endian=True)
            ds.SpecificCharacterSet = "ISO_IR 100"
            ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality, ds.InstanceNumber = CT, self.uids[z], "CT", place
            ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Müller^Jürg", "P1", "19700102", "M"
            ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
            ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200101", "101112", "S1", "A1"
            ds.ReferringPhysicianName, ds.SeriesNumber = "", 5
            ds.Rows, ds.Columns = SHAPE[1:]
            ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
            ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
            ds.ImagePositionPatient = [f"{value:.8f}"[:16] for value in position]
            ds.ImageOrientationPatient = [f"{value:.12f}"[:16] for value in axes.ravel()]
            ds.PixelSpacing, ds.SliceThickness = list(SPACING), DISTANCE
            ds.PixelData = self.voxels[z].tobytes()
            for keyword, value in more.items():
                if value is None:
                    del ds[keyword]
                else:
                    setattr(ds, keyword, value)
            ds.save_as(path, enforce_file_format=True)

    def write(self, form: str, segmentation: np.ndarray, labels: LabelSet = LABELS) -> Path:
        path = self.folder.parent / f"{form}.dcm"
        self.planes = self.planes or read_planes(self.folder)
        write_form(form, path, segmentation, labels, label_codes(labels), self.planes, [self.folder], MAKER)
        return path

    def slice_at(self, position: Sequence[float]) -> int:
        """Return the slice whose first pixel lies at a position."""
        distances = [float(np.linalg.norm(np.array(position, float) - own)) for own in self.positions]
        assert min(distances) < 1e-4
        return int(np.argmin(distances))


def read_by_pydicom(path: Path, series: Series, decode: Callable[[Path], np.ndarray]) -> np.ndarray:
    """Put the frames of a segmentation where their own positions say."""
    seg = pydicom.dcmread(path)
    shared = seg.SharedFunctionalGroupsSequence[0]
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    np.testing.assert_allclose(axes, series.axes, atol=1e-6)
    np.testing.assert_allclose(np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float), SPACING)
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID, str(seg.PatientName)) == ("1.2.3", "1.2.3.5", "Müller^Jürg")
    found = np.zeros(SHAPE, int)
    frames = decode(path).reshape(-1, *SHAPE[1:])
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        z = series.slice_at(group.PlanePositionSequence[0].ImagePositionPatient)
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert source == series.uids[z]
        if seg.SegmentationType == "LABELMAP":
            found[z] = frame
        else:
            found[z][frame > 0] = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return found


def read_by_highdicom(path: Path, series: Series) -> np.ndarray:
    seg = highdicom.seg.segread(path)
    found: np.ndarray = seg.get_pixels_by_source_instance(
        source_sop_instance_uids=series.uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    return found


def by_itk(path: Path) -> np.ndarray:
    """Decode frames by GDCM, which does not know the class of label maps yet, so that a copy says another one."""
    dataset = pydicom.dcmread(path)
    if dataset.SegmentationType == "LABELMAP":
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7.2")
        path = path.with_name("copy.dcm")
        dataset.save_as(path)
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO")))


def contours(path: Path, series: Series, number: int) -> np.ndarray:
    """Return which centres of pixels lie inside the contours of a label; each contour stands for itself."""
    found = np.zeros(SHAPE, bool)
    dataset = pydicom.dcmread(path)
    own = next(entry for entry in dataset.ROIContourSequence if entry.ReferencedROINumber == number)
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    for contour in own.get("ContourSequence", []):
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert contour.NumberOfContourPoints == len(points)
        z = series.uids.index(contour.ContourImageSequence[0].ReferencedSOPInstanceUID)
        offsets = points - series.positions[z]
        assert abs(offsets @ np.cross(*series.axes)).max() < 1e-3  # in the plane of its slice
        pixels = offsets @ series.axes.T / SPACING[::-1]  # along the row, down the column
        assert abs(pixels - np.round(pixels * 2) / 2).max() < 1e-3  # on the edges of pixels
        inside = Outline(np.vstack([pixels, pixels[:1]])).contains_points(centres).reshape(SHAPE[1:])
        found[z] ^= inside
    return found


def check(
    series: Series, labels: np.ndarray, forms: Sequence[str] = ("dicom_seg", "dicom_labelmap"), plainly: bool = True
) -> None:
    """Compare segmentations in some forms and contours; `plainly`: decode frames by pydicom, too, not by ITK alone."""
    for form in forms:
        path = series.write(form, labels)
        np.testing.assert_array_equal(read_by_highdicom(path, series), labels)
        np.testing.assert_array_equal(read_by_pydicom(path, series, by_itk), labels)
        if plainly:
            decoded = read_by_pydicom(path, series, lambda path: pydicom.dcmread(path).pixel_array)
            np.testing.assert_array_equal(decoded, labels)
    path = series.write("rtstruct", labels)
    for number in (1, 2, 3):
        np.testing.assert_array_equal(contours(path, series, number), labels == number)


@pytest.mark.parametrize(
    ("axes", "obliquity", "tilt", "backwards"),
    [(0, "straight", 0.0, False), (7, "oblique", 0.0, True), (13, "doubly oblique", 15.0, False)],
)
def test_places_are_those_of_the_slices(
    tmp_path: Path, axes: int, obliquity: str, tilt: float, backwards: bool
) -> None:
    check(Series(tmp_path / "series", turned(RIGHT_ANGLES[axes], obliquity), tilt, backwards), MARKER)


@pytest.mark.slow
def test_places_of_48_axis_orders_three_obliquities_and_a_tilt(tmp_path: Path) -> None:
    """The third axis of the 48 orders runs with or against the order of the files."""
    assert len(RIGHT_ANGLES) == 24
    cases = itertools.product(range(24), EULER, (0.0, 15.0), (False, True))
    for number, (axes, obliquity, tilt, backwards) in enumerate(cases):
        series = Series(tmp_path / str(number) / "s", turned(RIGHT_ANGLES[axes], obliquity), tilt, backwards)
        check(series, MARKER, ("dicom_seg", "dicom_labelmap") if number % 4 == 0 else ("dicom_seg",), plainly=False)
    assert number == 48 * 3 * 2 - 1


def test_frames_of_one_file_may_have_any_order(tmp_path: Path) -> None:
    """An enhanced file, whose frames are not in the order of their places."""
    series = Series(tmp_path / "series", turned(RIGHT_ANGLES[7], "oblique"))
    order = [2, 0, 3, 1]
    ds = pydicom.dcmread(series.folder / "1.dcm")
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2.1")
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(SPACING), DISTANCE
    orientation.ImageOrientationPatient = ds.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    ds.NumberOfFrames, ds.SharedFunctionalGroupsSequence, groups = 4, [shared], []
    for z in order:
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = [f"{value:.8f}"[:16] for value in series.positions[z]]
        group.PlanePositionSequence = [place]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence, ds.PixelData = groups, series.voxels[order].tobytes()
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        del ds[keyword]
    file = tmp_path / "enhanced.dcm"
    ds.save_as(file)
    np.testing.assert_array_equal(read_image([file]).array[0], series.voxels)
    planes = read_planes(file)
    for form in FORMS:
        write_form(form, tmp_path / form, MARKER, LABELS, label_codes(LABELS), planes, [file], MAKER)
    for form in ("dicom_seg", "dicom_labelmap"):
        seg, found = pydicom.dcmread(tmp_path / form), np.zeros(SHAPE, int)
        for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
            z = series.slice_at(group.PlanePositionSequence[0].ImagePositionPatient)
            source = group.DerivationImageSequence[0].SourceImageSequence[0]
            assert order[source.ReferencedFrameNumber - 1] == z
            number = (
                frame if form == "dicom_labelmap" else group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            )
            found[z][frame > 0] = number[frame > 0] if form == "dicom_labelmap" else number
        np.testing.assert_array_equal(found, MARKER)
    picture = pydicom.dcmread(tmp_path / "secondary_capture")
    letters = list(picture.PatientOrientation)
    assert max(map(len, letters)) > 1, "an oblique axis points in several directions"
    for axis, found in zip(series.axes, letters, strict=True):
        largest = int(np.abs(axis).argmax())
        assert found[0] == ("LPH" if axis[largest] > 0 else "RAF")[largest]
    shown = picture.SourceImageSequence
    assert [order[item.ReferencedFrameNumber - 1] for item in shown] == [0, 1, 2, 3]
    for contours_of in pydicom.dcmread(tmp_path / "rtstruct").ROIContourSequence:
        for contour in contours_of.ContourSequence:
            z = order[contour.ContourImageSequence[0].ReferencedFrameNumber - 1]
            offsets = np.array(contour.ContourData, float).reshape(-1, 3) - series.positions[z]
            assert abs(offsets @ np.cross(*series.axes)).max() < 1e-3


def test_any_map_survives(tmp_path: Path) -> None:
    """Parts that touch by corners, and many holes."""
    labels = np.random.default_rng(3).integers(0, 4, SHAPE).astype(np.uint8)
    check(Series(tmp_path / "series", RIGHT_ANGLES[0]), labels)
    check(Series(tmp_path / "empty" / "series", RIGHT_ANGLES[0]), np.zeros(SHAPE, np.uint8))


def test_areas_of_contours_are_those_of_the_pixels() -> None:
    """By the shoelace formula: the line to a hole and back has no area."""
    mask = np.random.default_rng(0).random((12, 13)) > 0.4
    total = 0.0
    for ring in rings(mask):
        following = np.roll(ring, -1, axis=0)
        total += float(ring[:, 1] @ following[:, 0] - ring[:, 0] @ following[:, 1]) / 2
    assert total == np.count_nonzero(mask)


def test_a_series_that_says_little_of_patient_and_study(tmp_path: Path) -> None:
    absent = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
    more = ("AccessionNumber", "ReferringPhysicianName", "SeriesNumber", "SliceThickness", "InstanceNumber")
    nothing: dict[str, Any] = dict.fromkeys((*absent, *more))
    series = Series(tmp_path / "series", RIGHT_ANGLES[0], **nothing)
    for form in ("dicom_seg", "rtstruct", "secondary_capture"):
        found = pydicom.dcmread(series.write(form, MARKER))
        assert (found.StudyInstanceUID, found.PatientID or "", found.StudyDate or "") == ("1.2.3", "", "")


def test_overlapping_regions_are_segments_of_their_own(tmp_path: Path) -> None:
    regions = LabelSet(("whole", "core"), ((1, 2), (2,)), region_order=(1, 2))
    labels = np.random.default_rng(3).integers(0, 3, SHAPE).astype(np.uint8)
    series = Series(tmp_path / "series", RIGHT_ANGLES[0])
    path = series.write("dicom_seg", labels, regions)
    pixels = highdicom.seg.segread(path).get_pixels_by_source_instance(source_sop_instance_uids=series.uids)
    np.testing.assert_array_equal(pixels[..., 0], labels > 0)
    np.testing.assert_array_equal(pixels[..., 1], labels == 2)
    path = series.write("dicom_labelmap", labels, regions)
    np.testing.assert_array_equal(read_by_highdicom(path, series), labels)
    names = [item.SegmentLabel for item in pydicom.dcmread(path).SegmentSequence if item.SegmentNumber]
    assert names == ["whole", "whole + core"]


def test_names_are_coded(tmp_path: Path) -> None:
    series = Series(tmp_path / "series", RIGHT_ANGLES[0])
    seg = pydicom.dcmread(series.write("dicom_seg", MARKER))
    liver, kidney, blob = seg.SegmentSequence
    assert liver.SegmentLabel == "liver"
    kind = liver.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("10200004", "SCT")
    modifier = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert modifier.CodeMeaning == "Left"
    assert blob.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == PRIVATE
    assert seg.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == PRIVATE
    algorithm = liver.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmVersion, algorithm.AlgorithmParameters) == ("1.2", "weights=0123456789abcdef")
    structures = pydicom.dcmread(series.write("rtstruct", MARKER))
    codes_found = [item.RTROIIdentificationCodeSequence[0].CodeValue for item in structures.RTROIObservationsSequence]
    assert codes_found[:2] == ["10200004", "64033007"]
    assert [roi.ROIName for roi in structures.StructureSetROISequence] == ["liver", "left kidney", "blob"]
    assert structures.ApprovalStatus == "UNAPPROVED"


@pytest.mark.parametrize(("count", "characters"), [(1, 16), (3, 16), (5, 12), (40, 1)])
def test_the_hash_of_each_network_fits_into_the_serial_number(
    make_model: Callable[..., Any], count: int, characters: int
) -> None:
    """DICOM's long string has 64 characters."""
    model = make_model(nn.Identity(), (2, 2, 2), 2)
    model.weights = "0123456789abcdef" * 4
    assert Maker.of([model] * count).weights.split(",") == ["0123456789abcdef"[:characters]] * count


def test_the_codes_are_those_of_the_standard() -> None:
    """Against pydicom's copy of DICOM's context groups."""
    table = {**codes._ORGANS, **codes._FINDINGS, **codes._MODIFIERS}
    for code in (*table.values(), codes._ANATOMY, codes._ABNORMAL):
        keyword = "".join(word.capitalize() for word in code.meaning.split())
        theirs = getattr(known_codes.SCT, keyword)
        assert (theirs.value, theirs.meaning) == (code.value, code.meaning)
    assert known_codes.DCM.ArtificialIntelligence.value == "123110"


def test_codes_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    entry = {"value": "9875009", "scheme": "SCT", "meaning": "Thymus", "laterality": "left", "abnormal": True}
    file.write_text(json.dumps({"labels": {"background": 0}, "codes": {"blob": entry}}))
    liver, _, blob = label_codes(LABELS, file)
    assert (liver.kind.value, blob.kind.meaning) == ("10200004", "Thymus")
    assert (blob.category.meaning, blob.modifier and blob.modifier.meaning) == (
        "Morphologically Abnormal Structure",
        "Left",
    )
    for wrong, said in (
        ({"blop": entry}, "Did you mean 'blob'"),
        ({"blob": {"value": 3}}, "value, scheme and meaning as text"),
        ({"blob": {**entry, "laterality": "top"}}, "laterality"),
        ({"blob": {**entry, "value": "9" * 17}}, "at most 16"),
        ([], "must be a JSON object"),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=said):
            label_codes(LABELS, file)


def test_names_of_the_hippocampus_mean_something_together_only() -> None:
    pair = label_codes(LabelSet(("Anterior", "Posterior"), ((1,), (2,))))
    assert [code.kind.meaning for code in pair] == ["Hippocampus", "Hippocampus"]
    assert [code.modifier and code.modifier.meaning for code in pair] == ["Anterior", "Posterior"]
    assert label_codes(LabelSet(("anterior",), ((1,),)))[0].kind.scheme == PRIVATE


class Classes(nn.Module):
    """Returns logits that are highest for the class whose number is the intensity."""

    def forward(self, x: Tensor) -> Tensor:
        return cat([-(x - value).abs() for value in range(4)], dim=1)


def test_predictions_of_a_series(make_model: Callable[..., Any], tmp_path: Path) -> None:
    series = Series(tmp_path / "in" / "scan", RIGHT_ANGLES[0], backwards=True)
    for z in range(SHAPE[0]):
        path = series.folder / f"{SHAPE[0] - z}.dcm"
        dataset = pydicom.dcmread(path)
        dataset.PixelData = MARKER[z].astype(np.int16).tobytes()
        dataset.save_as(path)
    model = make_model(
        Classes(), SHAPE, 4, num_channels=1, spacing=(2.0, 0.9, 0.7), names=("liver", "left kidney", "blob")
    )
    settings = PredictionSettings(tile_step_size=1.0, export=FORMS)
    (written,) = Predictor((model,)).predict(series.folder.parent, tmp_path / "out", settings, progress=False)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(written))), MARKER)
    for form in FORMS:
        dataset = pydicom.dcmread(tmp_path / "out" / form / "scan.dcm")
        assert (dataset.PatientID, dataset.StudyInstanceUID, dataset.AccessionNumber) == ("P1", "1.2.3", "A1")
        assert str(dataset.PatientName) == "Müller^Jürg"
        assert dataset.SeriesInstanceUID not in ("", "1.2.3.4")
        assert "(automatic, not reviewed)" in dataset.SeriesDescription
        assert (dataset.SeriesNumber, dataset.DeviceSerialNumber) == (590 + FORMS.index(form), model.weights[:16])
    np.testing.assert_array_equal(read_by_highdicom(tmp_path / "out" / "dicom_seg" / "scan.dcm", series), MARKER)
    picture = pydicom.dcmread(tmp_path / "out" / "secondary_capture" / "scan.dcm")
    assert picture.pixel_array.shape == (2 * 6 + 2, 2 * 8 + 2, 3)
    assert list(picture.PatientOrientation) == [direction_letters(axis) for axis in RIGHT_ANGLES[0]]
    blob = pydicom.dcmread(tmp_path / "out" / "rtstruct" / "scan.dcm").ROIContourSequence[2].ROIDisplayColor
    assert (picture.pixel_array[2, 2] == [int(value) for value in blob]).all()
    assert read_image([series.folder]).geometry.shape == SHAPE


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientSex", "U"), ("StudyTime", "10:11:12"), ("StudyDate", "2020"), ("StudyDate", "20201332")],
)
def test_what_dicom_does_not_allow_is_left_empty(
    tmp_path: Path, messages: pytest.LogCaptureFixture, keyword: str, value: str
) -> None:
    odd: dict[str, Any] = {keyword: value}
    series = Series(tmp_path / "series", RIGHT_ANGLES[0], **odd)
    kept = {"PatientSex": "M", "StudyTime": "101112", "StudyDate": "20200101", "PatientBirthDate": "19700102"}
    expected = {**kept, keyword: ""}
    for form in FORMS:
        found = pydicom.dcmread(series.write(form, MARKER))
        assert {name: str(found.get(name) or "") for name in kept} == expected
    told = [record.getMessage() for record in messages.records if "does not allow" in record.getMessage()]
    assert len(told) == 1, "once for all slices and forms"
    assert f"DICOM does not allow the value of {keyword}. " in told[0]
    assert str(series.folder) in told[0]


def test_an_export_that_fails_leaves_the_segmentation_and_is_tried_again(
    make_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from umamba.inference import dicom_seg

    series = Series(tmp_path / "in" / "scan", RIGHT_ANGLES[0])
    plain = tmp_path / "out" / "scan.nii.gz"
    predictor = Predictor((make_model(Classes(), SHAPE, 4, num_channels=1),))
    settings = PredictionSettings(export=("dicom_seg", "rtstruct"))
    passes: list[int] = []

    def broken(*arguments: Any, **options: Any) -> Dataset:
        assert not plain.exists(), "a command that is killed here leaves a case that is begun again"
        passes.append(1)
        raise UserError("1.2.3.4: the series lacks something. Leave dicom_seg out of export.")

    with monkeypatch.context() as patch:
        patch.setattr(dicom_seg, "segmentation_object", broken)
        with pytest.raises(UserError) as raised:
            predictor.predict(series.folder.parent, tmp_path / "out", settings, progress=False)
        said = f"scan: {plain} is written, but not all of its exports: export=[dicom_seg]: 1.2.3.4: the series lacks"
        assert said in str(raised.value)
        first = plain.read_bytes()
        assert (tmp_path / "out" / "rtstruct" / "scan.dcm").exists(), "the other form"
        assert "scan,label 3,108," in (tmp_path / "out" / "volumes.csv").read_text()
        assert predictor.predict(series.folder.parent, tmp_path / "out", progress=False) == [plain]
        assert len(passes) == 1, "nothing is missing without export"
    assert predictor.predict(series.folder.parent, tmp_path / "out", settings, progress=False) == [plain]
    assert plain.read_bytes() == first
    assert (tmp_path / "out" / "dicom_seg" / "scan.dcm").exists()


def test_other_images_and_series_without_identifiers_are_refused(
    make_model: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_model(Classes(), SHAPE, 4, num_channels=1)
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(MARKER), str(tmp_path / "in" / "plain.nii.gz"))
    Series(tmp_path / "in" / "lost", RIGHT_ANGLES[0], FrameOfReferenceUID=None)
    settings = PredictionSettings(export=("rtstruct",))
    with pytest.raises(UserError) as raised:
        Predictor((model,)).predict(tmp_path / "in", tmp_path / "out", settings, progress=False)
    assert "plain.nii.gz is none. Give the series itself" in str(raised.value)
    assert "has no Frame of Reference UID" in str(raised.value)
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_without_highdicom_the_remedy_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umamba.settings.prediction.find_spec", lambda name: None)
    with pytest.raises(InvalidSettings, match=r"export=\[dicom_seg\]: highdicom is not installed.*umamba\[dicom\]"):
        PredictionSettings(export=("dicom_seg", "rtstruct"))
    assert PredictionSettings(export=("rtstruct",)).export == ("rtstruct",)
