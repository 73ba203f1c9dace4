"""RT Structure Set: closed contours of each label on the planes of the slices, in mm of the patient (PS3.3 A.19).

Contours run along the edges of pixels, so that their area is that of the pixels. A hole is joined to its outer contour
by a keyhole, a line that the contour follows there and back (PS3.3 C.8.8.6.3), because every program reads that.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from umamba.inference.dicom_objects import (
    CHARACTERS,
    MANUFACTURER,
    MODEL_NAME,
    PATIENT_AND_STUDY,
    Maker,
    Segment,
    Source,
    code_item,
    image_reference,
    new_uid,
    now,
    schemes,
)
from umamba.inference.outlines import polygons
from umamba.io.dicom_planes import Plane

_CLASS = UID("1.2.840.10008.5.1.4.1.1.481.3")
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, which the standard keeps for this place


def structure_set(source: Source, segmentation: np.ndarray, segments: Sequence[Segment], maker: Maker) -> Dataset:
    """Return contours as a DICOM object.

    Args:
        source: the series that was segmented.
        segmentation: label map (Z, Y, X), a slice for each plane of the source.
        segments: the labels. One without a voxel has no contours.
        maker: what made the segmentation.
    """
    made = _empty(source, maker)
    frame_of_reference = str(source.first.FrameOfReferenceUID)
    made.ReferencedFrameOfReferenceSequence = [_reference(source, frame_of_reference)]
    made.StructureSetROISequence, made.ROIContourSequence, made.RTROIObservationsSequence = [], [], []
    coding = []
    for scheme in schemes(segments):
        item = Dataset()
        item.CodingSchemeDesignator, item.CodingSchemeName = scheme["designator"], scheme["name"]
        item.CodingSchemeResponsibleOrganization = scheme["organization"]
        coding.append(item)
    if coding:
        made.CodingSchemeIdentificationSequence = coding
    for segment in segments:
        roi, contours, observation = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ReferencedFrameOfReferenceUID = segment.number, frame_of_reference
        roi.ROIName, roi.ROIGenerationAlgorithm = segment.name, "AUTOMATIC"
        contours.ReferencedROINumber, contours.ROIDisplayColor = segment.number, list(segment.colour)
        found = [
            _contour(plane, ring)
            for plane, mask in zip(source.planes, map(segment.mask, segmentation), strict=True)
            for ring in rings(mask)
        ]
        if found:
            contours.ContourSequence = found
        observation.ObservationNumber = observation.ReferencedROINumber = segment.number
        kind = code_item(segment.code.kind)
        if segment.code.modifier is not None:
            kind.SegmentedPropertyTypeModifierCodeSequence = [code_item(segment.code.modifier)]
        observation.RTROIIdentificationCodeSequence = [kind]
        observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
        made.StructureSetROISequence.append(roi)
        made.ROIContourSequence.append(contours)
        made.RTROIObservationsSequence.append(observation)
    return made


def rings(mask: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the contours of a mask, holes joined to them by keyholes.

    Args:
        mask: (Y, X) bool.

    Yields:
        (N, 2) rows and columns; whole numbers are centres of pixels. The last point is not the first one again.

    >>> [ring.tolist() for ring in rings(np.array([[True, True]]))]
    [[[-0.5, -0.5], [-0.5, 1.5], [0.5, 1.5], [0.5, -0.5]]]
    """
    if not mask.any():
        return
    for outer, *holes in polygons(mask):
        ring = np.array(outer[:-1], dtype=np.float64)
        for hole in sorted(holes):
            ring = _joined(ring, np.array(hole[:-1], dtype=np.float64))
        yield ring[:, ::-1] - 0.5


def _joined(ring: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Join a hole to a ring at the nearest two of their points, by a line that the contour follows there and back."""
    distances = np.linalg.norm(ring[:, None] - hole[None], axis=2)
    at, to = np.unravel_index(int(distances.argmin()), distances.shape)
    return np.concatenate([ring[: at + 1], np.roll(hole, -to, axis=0), hole[to : to + 1], ring[at:]])


def _contour(plane: Plane, ring: np.ndarray) -> Dataset:
    contour = Dataset()
    contour.ContourImageSequence = [image_reference(plane)]
    contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(ring)
    contour.ContourData = [f"{value:.4f}" for value in plane.points_xyz(ring).ravel().tolist()]
    return contour


def _reference(source: Source, frame_of_reference: str) -> Dataset:
    """Return the reference to the frame of reference, the study, the series and all of its slices."""
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.first.SeriesInstanceUID
    series.ContourImageSequence = [image_reference(plane) for plane in source.planes]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, source.first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = frame_of_reference, [study]
    return frame


def _empty(source: Source, maker: Maker) -> FileDataset:
    """Return the object with its patient, study, series and equipment."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = _CLASS, UID(new_uid())
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
    made.SpecificCharacterSet = CHARACTERS
    made.SOPClassUID, made.SOPInstanceUID = _CLASS, meta.MediaStorageSOPInstanceUID
    for keyword in PATIENT_AND_STUDY:
        setattr(made, keyword, source.first.get(keyword, ""))
    made.StudyInstanceUID = source.first.StudyInstanceUID
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = source.first.FrameOfReferenceUID, ""
    made.Modality, made.SeriesInstanceUID, made.SeriesNumber = "RTSTRUCT", new_uid(), source.number
    made.SeriesDescription, made.OperatorsName = source.description, ""
    made.InstanceNumber = 1
    made.Manufacturer, made.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    made.SoftwareVersions, made.DeviceSerialNumber = maker.version, maker.weights
    made.StructureSetLabel, made.StructureSetName = "SEGMENTATION", source.description
    date, time = now()
    made.StructureSetDate, made.StructureSetTime = date, time
    made.InstanceCreationDate, made.InstanceCreationTime = date, time
    made.ApprovalStatus = "UNAPPROVED"
    return made
