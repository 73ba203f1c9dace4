"""Further forms of a segmentation for other programs (key `export`): a Slicer segmentation, outlines, a 16-bit map."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from umamba.inference.label_files import label_entries
from umamba.inference.model import Model
from umamba.inference.outlines import polygons
from umamba.io import Geometry, StorageError, UserError, atomic_path, read_image, storage_errors, write_image
from umamba.labels import LabelSet, colours

_FLAT = ("geojson", "outlines", "map16")  # forms of two-dimensional images
_MOST = 65535  # of a 16-bit map
_CELL_COLOURS = 12  # numbered cells take them in turn


def check_exports(forms: Sequence[str], models: Sequence[Model]) -> None:
    """Refuse forms that no image of these networks can have.

    Args:
        forms: names of forms.
        models: the networks.

    Raises:
        UserError: a form of two-dimensional images is asked of a network that sees volumes.
    """
    flat = [form for form in forms if form in _FLAT]
    if flat and any(model.configuration.dim == 3 for model in models):
        raise UserError(
            f"export=[{','.join(flat)}]: is for two-dimensional images, and the network sees volumes. Leave it away; "
            "seg_nrrd is a form of volumes."
        )


def check_image_exports(forms: Sequence[str], geometry: Geometry) -> None:
    """Refuse forms that an image cannot have, before it is segmented.

    Args:
        forms: names of forms.
        geometry: of the image.

    Raises:
        UserError: the image has several slices, and a form is one of two-dimensional images.
    """
    flat = [form for form in forms if form in _FLAT]
    if flat and geometry.shape[0] > 1:
        raise UserError(
            f"export=[{','.join(flat)}]: is for two-dimensional images; this one has {geometry.shape[0]} slices. Leave "
            "the form away for volumes."
        )


def check_segmentation_file(path: Path, geometry: Geometry) -> None:
    """Refuse a file of a format that cannot hold the segmentation of an image, before the image is segmented.

    Args:
        path: where the segmentation will be written.
        geometry: of the image.

    Raises:
        UserError: PNG and BMP hold no volume, GIPL no direction.
    """
    name = path.name.lower()
    if name.endswith((".png", ".bmp")) and not geometry.is_2d:
        raise UserError(
            f"{path}: this format holds 2D images only, and the image is a volume (Z, Y, X) of {geometry.shape}. Give "
            "output=NAME.nii.gz."
        )
    identity = np.eye(2 if geometry.is_2d else 3).ravel()
    if name.endswith(".gipl") and not np.allclose(geometry.direction_xyz, identity, atol=1e-4):
        raise UserError(
            f"{path}: this format cannot hold the direction of the image. Give output=NAME.nii.gz, .nrrd or .mha."
        )


def write_exports(
    exports: Sequence[tuple[str, Path]],
    segmentation: np.ndarray,
    instances: np.ndarray | None,
    geometry: Geometry,
    labels: LabelSet,
    images: Sequence[Path],
) -> list[str]:
    """Write the forms of a case that are not in DICOM; one that cannot be written does not stop the others.

    Args:
        exports: form and file.
        segmentation: label map (Z, Y, X).
        instances: numbered cells (Z, Y, X) int32, which the forms of two-dimensional images hold then; None: none.
        geometry: of the image.
        labels: the label set.
        images: files of the image, which `outlines` draws on.

    Returns:
        What is wrong with the forms that could not be written, such as a 16-bit map that cannot hold the numbers.

    Raises:
        StorageError: a file cannot be written.
    """
    problems = []
    for form, path in exports:
        try:
            _write_form(form, path, segmentation, instances, geometry, labels, images)
        except StorageError:
            raise
        except UserError as error:
            problems.append(str(error))
    return problems


def _write_form(
    form: str,
    path: Path,
    segmentation: np.ndarray,
    instances: np.ndarray | None,
    geometry: Geometry,
    labels: LabelSet,
    images: Sequence[Path],
) -> None:
    """Write a form; those in DICOM are left out."""
    if form == "seg_nrrd":
        write_image(path, slicer_segmentation(segmentation, geometry, labels))
    elif form == "geojson":
        content = json.dumps(outline_features(segmentation[0], None if instances is None else instances[0], labels))
        with storage_errors(path), atomic_path(path) as temporary:
            temporary.write_text(content + "\n", encoding="utf-8")
    elif form == "outlines":
        image = read_image(images, time_is_channels=True).array[:, 0]
        drawn = draw_outlines(image, segmentation[0], None if instances is None else instances[0], labels)
        write_image(path, sitk.GetImageFromArray(drawn, isVector=True))
    elif form == "map16":
        numbers = segmentation[0] if instances is None else instances[0]
        if numbers.max(initial=0) > _MOST:
            raise UserError(
                f"export=[map16]: the map would hold {numbers.max()} cells, a 16-bit file at most {_MOST}. Leave "
                "map16 away; NAME_label.tiff holds them."
            )
        write_image(path, sitk.GetImageFromArray(numbers.astype(np.uint16)))


def slicer_segmentation(segmentation: np.ndarray, geometry: Geometry, labels: LabelSet) -> sitk.Image:
    """Return a label map with the names and colours that 3D Slicer keeps in .seg.nrrd files.

    Args:
        segmentation: label map (Z, Y, X).
        geometry: its geometry; a two-dimensional file becomes a slice of 1 mm.
        labels: the label set.
    """
    kind = np.uint8 if labels.all_values[-1] < 256 else np.uint16
    image = sitk.GetImageFromArray(segmentation.astype(kind, copy=False))
    if geometry.is_2d:
        image.SetSpacing((geometry.spacing[2], geometry.spacing[1], 1.0))
        image.SetOrigin((*geometry.origin_xyz[:2], 0.0))
        (a, b), (c, d) = geometry.direction_xyz[:2], geometry.direction_xyz[2:]
        image.SetDirection((a, b, 0.0, c, d, 0.0, 0.0, 0.0, 1.0))
    else:
        image.SetSpacing(tuple(reversed(geometry.spacing)))
        image.SetOrigin(geometry.origin_xyz)
        image.SetDirection(geometry.direction_xyz)
    depth, height, width = geometry.shape
    image.SetMetaData("Segmentation_ContainedRepresentationNames", "Binary labelmap|")
    image.SetMetaData("Segmentation_MasterRepresentation", "Binary labelmap")
    image.SetMetaData("Segmentation_ReferenceImageExtentOffset", "0 0 0")
    for number, entry in enumerate(label_entries(labels)):
        values = {
            "ID": f"Segment_{entry.value}",
            "Name": entry.name,
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{channel / 255:.6g}" for channel in entry.colour),
            "ColorAutoGenerated": "0",
            "LabelValue": str(entry.value),
            "Layer": "0",
            "Extent": f"0 {width - 1} 0 {height - 1} 0 {depth - 1}",
        }
        for name, value in values.items():
            image.SetMetaData(f"Segment{number}_{name}", value)
    return image


def outline_features(segmentation: np.ndarray, instances: np.ndarray | None, labels: LabelSet) -> dict[str, Any]:
    """Return GeoJSON outlines, in pixels with (0, 0) at the upper left corner, as QuPath imports them.

    Args:
        segmentation: label map (Y, X).
        instances: numbered cells (Y, X); None: there are none.
        labels: the label set.

    Returns:
        A FeatureCollection with a feature for each label value that occurs, or for each cell.
    """
    features = []
    if instances is None:
        for entry in label_entries(labels):
            mask = segmentation == entry.value
            if mask.any():
                kind = {"name": entry.name, "color": list(entry.colour)}
                properties = {"objectType": "annotation", "classification": kind, "value": entry.value}
                features.append(_feature(polygons(mask), properties))
    else:
        from scipy import ndimage  # takes a while to load

        for number, box in enumerate(ndimage.find_objects(instances), start=1):
            if box is None:
                continue
            shift = (box[1].start, box[0].start)
            parts = polygons(instances[box] == number)
            moved = [[[(x + shift[0], y + shift[1]) for x, y in ring] for ring in part] for part in parts]
            properties = {"objectType": "detection", "name": str(number), "classification": {"name": "cell"}}
            features.append(_feature(moved, properties))
    return {"type": "FeatureCollection", "features": features}


def _feature(parts: list[Any], properties: dict[str, Any]) -> dict[str, Any]:
    single = len(parts) == 1
    geometry = {"type": "Polygon" if single else "MultiPolygon", "coordinates": parts[0] if single else parts}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def draw_outlines(
    image: np.ndarray, segmentation: np.ndarray, instances: np.ndarray | None, labels: LabelSet
) -> np.ndarray:
    """Return an image in colour with the outlines of its labels, or of its cells, one pixel wide inside each area.

    Args:
        image: (C, Y, X); three channels of 8-bit integers keep their colours, otherwise the first channel is drawn in
            grey between its percentiles 0.5 and 99.5.
        segmentation: label map (Y, X).
        instances: numbered cells (Y, X); None: there are none.
        labels: the label set.

    Returns:
        (Y, X, 3) uint8.
    """
    from skimage.segmentation import find_boundaries  # takes a while to load

    if len(image) == 3 and image.dtype == np.uint8:
        drawn = np.ascontiguousarray(np.moveaxis(image, 0, -1))
    else:
        low, high = np.percentile(image[0], (0.5, 99.5))
        grey = np.clip((image[0].astype(np.float32) - low) / max(float(high - low), 1e-8), 0, 1)
        drawn = np.repeat(np.round(255 * grey).astype(np.uint8)[..., None], 3, axis=-1)
    if instances is None:
        edge = find_boundaries(segmentation, mode="inner")
        for entry in label_entries(labels):
            drawn[edge & (segmentation == entry.value)] = entry.colour
    else:
        edge = find_boundaries(instances, mode="inner")
        drawn[edge] = colours(_CELL_COLOURS)[(instances[edge] - 1) % _CELL_COLOURS]
    return drawn
