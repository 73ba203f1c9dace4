"""Segment an image with a network that was exported to ONNX; it needs numpy, scipy and onnxruntime, not PyTorch.

`umamba export format=onnx` writes this file as umamba_onnx.py beside model.onnx and model.json. It is longer than other
modules and imports none of them, because it is copied alone to machines without this project:

    labels = Segmenter(Path("FOLDER")).segment(array, spacing)  # (C, Z, Y, X) and mm along (Z, Y, X)

The steps are nnU-Net's: transpose, crop to the nonzero region, normalise, resample, overlapping tiles under Gaussian
weights, resample the logits back, decide the labels. model.json describes them.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT, VERSION = "umamba-onnx", 1
MODEL_FILE, DESCRIPTION_FILE = "model.onnx", "model.json"
SCHEMES = (
    *("CTNormalization", "ZScoreNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"),
    "NoNormalization",
)
_MOST_BYTES = 1 << 20  # of model.json
_MOST_VOXELS = 1 << 34  # of a resampled image with all its channels
_LARGEST_INTENSITY = 1e18  # squares of larger ones come near the end of float32
_ANISOTROPY = 3.0  # an axis more than so many times as coarse as the finest is resampled on its own
_EPSILON = 1e-8


class ModelError(Exception):
    """The files of the model or the image cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class Channel:
    """How an image channel is normalised.

    Attributes:
        name: such as "CT".
        normalization: one of `SCHEMES`.
        use_mask: whether only voxels inside the nonzero region count and are changed.
        intensity: mean, standard deviation, percentiles 0.5 and 99.5 of the training images; None: not known.
    """

    name: str
    normalization: str
    use_mask: bool
    intensity: tuple[float, float, float, float] | None


@dataclass(frozen=True)
class Description:
    """The content of model.json.

    Attributes:
        sha256: of model.onnx.
        channels: of an image.
        turn_to_ras: whether the axes are turned before all other steps, so that they grow to the right, to anterior and
            to superior.
        transpose_forward: file axis of each axis of the network.
        transpose_backward: axis of the network of each file axis.
        spacing: of the network's grid in mm; two entries of a network that sees slices.
        patch_size: voxels of a tile.
        step: largest step between tiles as a fraction of the patch.
        sigma: of the Gaussian weights of a tile as a fraction of the patch.
        mirror_axes: axes of the patch along which test-time augmentation may mirror.
        regions: True: each head above 0 paints its value over those before; False: the highest head gives the value.
        values: label value of each head.
        keep_largest: label values of each step that keeps the largest component only.
    """

    sha256: str
    channels: tuple[Channel, ...]
    turn_to_ras: bool
    transpose_forward: tuple[int, ...]
    transpose_backward: tuple[int, ...]
    spacing: tuple[float, ...]
    patch_size: tuple[int, ...]
    step: float
    sigma: float
    mirror_axes: tuple[int, ...]
    regions: bool
    values: tuple[int, ...]
    keep_largest: tuple[tuple[int, ...], ...]

    @classmethod
    def read(cls, path: Path) -> "Description":
        """Read and check model.json.

        Args:
            path: the file.

        Raises:
            ModelError: the file is missing, too large, no JSON, or a value is not possible.
        """
        content = _json(path)
        try:
            return cls._of(content)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise ModelError(f"{path}: {reason}. Export the network again.") from None

    @classmethod
    def _of(cls, content: Any) -> "Description":
        """Return the checked values; raise KeyError, TypeError or ValueError."""
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ValueError(f"is not of format {FORMAT}, version {VERSION}")
        before, tiling, decision = content["preprocessing"], content["tiling"], content["decision"]
        patch = _numbers("patch_size", tiling["patch_size"], int, 1, 16384, (2, 3))
        dim = len(patch)
        forward = _numbers("transpose_forward", before["transpose_forward"], int, 0, 2, (3,))
        backward = _numbers("transpose_backward", before["transpose_backward"], int, 0, 2, (3,))
        if any(forward[axis] != place for place, axis in enumerate(backward)):
            raise ValueError("transpose_backward does not undo transpose_forward")
        mirrored = _numbers("mirror_axes", tiling["mirror_axes"], int, 0, dim - 1, range(dim + 1))
        if len(set(mirrored)) != len(mirrored):
            raise ValueError("mirror_axes holds an axis twice")
        steps = content["post_processing"]["keep_largest_component"]
        if not isinstance(content["channels"], list) or not 1 <= len(content["channels"]) <= 4096:
            raise ValueError("channels must be a list of 1 to 4096")
        return cls(
            sha256=_one_of("sha256", content["model"]["sha256"], None),
            channels=tuple(map(_channel, content["channels"])),
            turn_to_ras=_one_of("orientation", before["orientation"], ("as stored", "RAS")) == "RAS",
            transpose_forward=forward,
            transpose_backward=backward,
            spacing=_numbers("spacing", before["spacing"], float, 1e-6, 1e6, (dim,)),
            patch_size=patch,
            step=_numbers("tile_step_size", [tiling["tile_step_size"]], float, 0.01, 1, (1,))[0],
            sigma=_numbers("sigma", [tiling["sigma"]], float, 0.01, 10, (1,))[0],
            mirror_axes=mirrored,
            regions=_one_of("kind", decision["kind"], ("highest", "regions")) == "regions",
            values=_numbers("values", decision["values"], int, 0, 32767, range(1, 32769)),
            keep_largest=tuple(
                _numbers("keep_largest_component", step, int, 1, 32767, range(1, 32768)) for step in steps
            ),
        )


def _json(path: Path) -> Any:
    def no_number(name: str) -> None:
        raise ValueError(f"holds {name}, which is no number")

    try:
        with path.open("rb") as stream:
            text = stream.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ModelError(f"{path}: has more than {_MOST_BYTES >> 10} KiB. Check that it is the right file.")
        return json.loads(text.decode(), parse_constant=no_number)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}). Keep all exported files in one folder.") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is no valid JSON ({error}). Export the network again.") from None


def _channel(content: Any) -> Channel:
    scheme = _one_of("normalization", content["normalization"], SCHEMES)
    if type(content["use_mask"]) is not bool:
        raise ValueError("use_mask must be true or false")
    names = ("mean", "std", "percentile_00_5", "percentile_99_5")
    intensity = None
    if content["intensity"] is not None:
        given = [content["intensity"][name] for name in names]
        mean, deviation, low, high = _numbers("intensity", given, float, -1e30, 1e30, (4,))
        intensity = (mean, deviation, low, high)
    elif scheme == "CTNormalization":
        raise ValueError("CTNormalization needs intensity")
    return Channel(_one_of("name", content["name"], None), scheme, content["use_mask"], intensity)


def _one_of(name: str, value: Any, choices: Sequence[str] | None) -> str:
    if not isinstance(value, str) or (choices is not None and value not in choices):
        raise ValueError(f"{name} must be {'a text' if choices is None else ' or '.join(choices)}")
    return value


def _numbers(name: str, values: Any, kind: type, low: float, high: float, lengths: Sequence[int]) -> tuple[Any, ...]:
    """Return a list of checked numbers, of one of these lengths."""
    if not isinstance(values, list) or len(values) not in lengths:
        raise ValueError(f"{name} must be a list of {' or '.join(map(str, lengths[:3]))} numbers")
    for value in values:
        if type(value) not in ((int,) if kind is int else (int, float)) or not low <= value <= high:
            raise ValueError(f"{name} must hold numbers from {low:g} to {high:g}")
    return tuple(kind(value) for value in values)


def nonzero_mask(array: np.ndarray) -> np.ndarray:
    """Return where any channel of (C, Z, Y, X) is not 0, with holes filled."""
    from scipy.ndimage import binary_fill_holes

    mask: np.ndarray = binary_fill_holes((array != 0).any(axis=0))
    return mask


def box_of(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the bounding box of a mask (Z, Y, X); of an empty one the whole."""
    if not mask.any():
        return tuple(slice(0, size) for size in mask.shape)
    box = []
    for axis in range(3):
        used = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def normalize(voxels: np.ndarray, channel: Channel, inside: np.ndarray | None) -> None:
    """Normalise a float32 channel (Z, Y, X) in place.

    Args:
        voxels: the channel.
        channel: how.
        inside: mask of the nonzero region, where the channel uses it.

    Raises:
        ModelError: an RGB image has values outside 0 to 255.
    """
    match channel.normalization:
        case "CTNormalization":
            assert channel.intensity is not None
            mean, deviation, low, high = channel.intensity
            np.clip(voxels, low, high, out=voxels)
            voxels -= np.float32(mean)
            voxels /= np.float32(max(deviation, _EPSILON))
        case "ZScoreNormalization":
            chosen = voxels[inside] if inside is not None else voxels
            if chosen.size:
                chosen -= np.float32(chosen.mean(dtype=np.float64))
                chosen /= np.float32(max(math.sqrt(np.square(chosen).mean(dtype=np.float64)), _EPSILON))
            if inside is not None:
                voxels[inside] = chosen
        case "RescaleTo01Normalization":
            voxels -= voxels.min()
            voxels /= max(voxels.max(), np.float32(_EPSILON))
        case "RGBTo01Normalization":
            if voxels.min() < 0 or voxels.max() > 255:
                raise ModelError(f"channel {channel.name}: holds values outside 0 to 255. Give an 8-bit image.")
            voxels /= np.float32(255)


def separate_axis(spacing: Sequence[float], other: Sequence[float]) -> int | None:
    """Return the axis that is far coarser than the finest in the first spacing, else in the other; None: no single."""
    for each in (spacing, other):
        if max(each) / min(each) > _ANISOTROPY:
            axes = [axis for axis, value in enumerate(each) if value == max(each)]
            return axes[0] if len(axes) == 1 else None
    return None


def _places(size: int, new_size: int) -> np.ndarray:
    """Return the centres of new samples in units of the old ones."""
    return size / new_size * (np.arange(new_size) + 0.5) - 0.5


def _nearest(size: int, new_size: int) -> np.ndarray:
    return np.clip(np.floor(_places(size, new_size) + 0.5).astype(np.intp), 0, size - 1)


def resample_image(volume: np.ndarray, shape: Sequence[int], separate: int | None) -> np.ndarray:
    """Resample (Z, Y, X) by cubic splines within its range; along a separate axis take the nearest slices.

    Args:
        volume: the voxels.
        shape: of the result.
        separate: see `separate_axis`.
    """
    from scipy.ndimage import zoom

    if volume.shape == tuple(shape):
        return volume
    within = [old if axis == separate else new for axis, (old, new) in enumerate(zip(volume.shape, shape, strict=True))]
    factors = [new / old for new, old in zip(within, volume.shape, strict=True)]
    slices = [volume] if separate is None else [volume.take([k], separate) for k in range(volume.shape[separate])]
    resized = []
    for part in slices:
        values = part.astype(np.float64)
        if any(factor != 1 for factor in factors):
            low, high = values.min(), values.max()
            axes = [axis for axis in range(3) if axis != separate]
            plane = values.squeeze(separate) if separate is not None else values
            scale = [factors[axis] for axis in axes]
            values = np.clip(zoom(plane, scale, order=3, mode="nearest", grid_mode=True), low, high)
            values = np.expand_dims(values, separate) if separate is not None else values
        resized.append(values.astype(np.float32))
    result = np.concatenate(resized, separate or 0)
    return result if separate is None else result.take(_nearest(volume.shape[separate], shape[separate]), separate)


def resample_logits(volume: np.ndarray, shape: Sequence[int], separate: int | None) -> np.ndarray:
    """Resample (Z, Y, X) linearly; along a separate axis take the nearest slices."""
    for axis, (size, new_size) in enumerate(zip(volume.shape, shape, strict=True)):
        if axis == separate:
            volume = volume.take(_nearest(size, new_size), axis)
        elif size != new_size:
            places = _places(size, new_size).clip(0, size - 1)
            low = places.astype(np.intp)
            share = (places - low).astype(np.float32).reshape([-1 if axis == each else 1 for each in range(3)])
            first = volume.take(low, axis)
            volume = first + (volume.take((low + 1).clip(max=size - 1), axis) - first) * share
    return volume


def tiles_along(length: int, patch: int, step: float, sigma: float) -> list[tuple[int, np.ndarray]]:
    """Return the first voxel of each tile of an axis, and the share (patch,) of the tile in each voxel's mean.

    An axis shorter than the patch is padded on both sides, more at its end.
    """
    before, covered = max(patch - length, 0) // 2, max(length, patch)
    count = math.ceil((covered - patch) / max(1.0, patch * step))
    starts = [round((covered - patch) / count * index) for index in range(count + 1)] if count else [0]
    gaussian = np.exp(-0.5 * ((np.arange(patch) - patch // 2) / (patch * sigma)) ** 2)
    total = np.zeros(covered)
    for start in starts:
        total[start : start + patch] += gaussian
    return [(start - before, (gaussian / total[start : start + patch]).astype(np.float32)) for start in starts]


def decide(heads: int, logits_of: Callable[[int], np.ndarray], regions: bool, values: Sequence[int]) -> np.ndarray:
    """Return the label map of the logits of each head."""
    kind = np.min_scalar_type(max(values))
    best = logits_of(0)
    if regions:
        labels = np.where(best > 0, values[0], 0).astype(kind)
        for head in range(1, heads):
            labels[logits_of(head) > 0] = values[head]
        return labels
    labels = np.full(best.shape, values[0], dtype=kind)
    for head in range(1, heads):
        logits = logits_of(head)
        labels[logits > best] = values[head]
        best = np.maximum(best, logits)
    return labels


def keep_largest(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Keep the largest component, or several of the same size, of the voxels with one of some values."""
    from scipy.ndimage import label

    components, count = label(np.isin(labels, values), np.ones((3, 3, 3)))
    if count < 2:
        return labels
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    removed = sizes < sizes.max()
    removed[0] = False
    return np.where(removed[components], 0, labels).astype(labels.dtype)


class Segmenter:
    """A network in ONNX Runtime with all that is needed to segment an image.

    Attributes:
        description: the content of model.json.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """Read the files of an export.

        Args:
            folder: holds model.onnx and model.json.
            threads: CPU threads; None: ONNX Runtime's choice.

        Raises:
            ModelError: a file is missing or damaged, or the two do not belong together.
        """
        import onnxruntime

        self.description = Description.read(folder / DESCRIPTION_FILE)
        path = folder / MODEL_FILE
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror}). Keep the exported files together.") from None
        if hashlib.sha256(content).hexdigest() != self.description.sha256:
            raise ModelError(f"{path}: is not the file that {DESCRIPTION_FILE} describes. Export the network again.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises classes of its own
            raise ModelError(f"{path}: ONNX Runtime cannot load it ({str(error)[:300]}). Update onnxruntime.") from None
        shapes = [each.shape for each in (*self._session.get_inputs(), *self._session.get_outputs())]
        patch = list(self.description.patch_size)
        expected = [[1, len(self.description.channels), *patch], [1, len(self.description.values), *patch]]
        if shapes != expected:
            raise ModelError(f"{path}: has the shapes {shapes}, {DESCRIPTION_FILE} the shapes {expected}.")

    def segment(
        self, array: np.ndarray, spacing: Sequence[float], step: float | None = None, mirror: bool = False
    ) -> np.ndarray:
        """Segment an image.

        Args:
            array: (C, Z, Y, X); an image of one slice has Z of 1. If `description.turn_to_ras`, its axes must grow to
                superior, anterior and right.
            spacing: mm along (Z, Y, X).
            step: largest step between tiles as a fraction of the patch; None: that of model.json.
            mirror: also average over the mirrored images (test-time augmentation).

        Returns:
            Label map (Z, Y, X) in the smallest unsigned integer type.

        Raises:
            ModelError: the image does not fit the network.
        """
        own = self.description
        if array.ndim != 4 or len(array) != len(own.channels) or 0 in array.shape:
            names = ", ".join(channel.name for channel in own.channels)
            raise ModelError(f"the image has the shape {array.shape}; give (C, Z, Y, X) with the channels {names}.")
        low, high = float(array.min()), float(array.max())  # NaN is both
        if not max(-low, high) <= _LARGEST_INTENSITY:
            raise ModelError("the image holds NaN, infinity or values beyond 1e18. Replace them by a real intensity.")
        if len(spacing) != 3 or not all(math.isfinite(mm) and mm > 0 for mm in spacing):
            raise ModelError(f"the spacing {tuple(spacing)} must be three numbers of mm above 0.")
        if step is not None and not 0 < step <= 1:
            raise ModelError(f"step={step}: must be above 0 and at most 1.")
        raw = array.transpose(0, *(axis + 1 for axis in own.transpose_forward))
        here = [float(spacing[axis]) for axis in own.transpose_forward]
        data, box = self._prepared(raw, here)
        logits = self._logits(data, own.step if step is None else step, own.mirror_axes if mirror else ())
        crop = tuple(extent.stop - extent.start for extent in box)
        separate = separate_axis(self._target(here), here)
        labels = np.zeros(raw.shape[1:], dtype=np.min_scalar_type(max(own.values)))
        labels[box] = decide(
            len(logits), lambda head: resample_logits(logits[head], crop, separate), own.regions, own.values
        )
        labels = np.ascontiguousarray(labels.transpose(own.transpose_backward))
        for values in own.keep_largest:
            labels = keep_largest(labels, values)
        return labels

    def _target(self, spacing: Sequence[float]) -> list[float]:
        """Return the spacing of the network's grid; a network that sees slices keeps that of the first axis."""
        return [*spacing[: 3 - len(self.description.spacing)], *self.description.spacing]

    def _prepared(self, raw: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, tuple[slice, ...]]:
        """Return the image on the network's grid, and the box of the crop; all axes are the network's."""
        channels = self.description.channels
        uses_mask = any(channel.use_mask for channel in channels)
        mask = nonzero_mask(raw) if uses_mask else (raw != 0).any(axis=0)
        box = box_of(mask)
        data = raw[(slice(None), *box)].astype(np.float32, order="C")
        for voxels, channel in zip(data, channels, strict=True):
            normalize(voxels, channel, mask[box] if channel.use_mask else None)
        target = self._target(spacing)
        sizes = zip(spacing, target, data.shape[1:], strict=True)
        shape = [max(1, round(old / new * size)) for old, new, size in sizes]
        if math.prod(shape) * len(channels) > _MOST_VOXELS or max(shape) > 1 << 17:
            raise ModelError(f"the image would have {shape} voxels at {target} mm. Check its spacing, {spacing} mm.")
        separate = separate_axis(spacing, target)
        return np.stack([resample_image(voxels, shape, separate) for voxels in data]), box

    def _logits(self, image: np.ndarray, step: float, mirrored: Sequence[int]) -> np.ndarray:
        """Return the logits (heads, Z, Y, X) of an image on the network's grid: means over tiles."""
        own = self.description
        flat = len(own.patch_size) == 2
        window = (1, *own.patch_size) if flat else own.patch_size
        sums = np.zeros((len(own.values), *image.shape[1:]), dtype=np.float32)
        along = [
            tiles_along(length, size, step, own.sigma) for length, size in zip(image.shape[1:], window, strict=True)
        ]
        for place in itertools.product(*along):
            tile = np.zeros((len(image), *window), dtype=np.float32)
            inside, within = [], []
            for (start, _), length, size in zip(place, image.shape[1:], window, strict=True):
                first, last = max(start, 0), min(start + size, length)
                inside.append(slice(first, last))
                within.append(slice(first - start, last - start))
            tile[(slice(None), *within)] = image[(slice(None), *inside)]
            logits = self._network(tile[:, 0] if flat else tile, mirrored)
            logits = logits[:, None] if flat else logits
            z, y, x = (weights[part] for (_, weights), part in zip(place, within, strict=True))
            sums[(slice(None), *inside)] += logits[(slice(None), *within)] * (z[:, None, None] * y[:, None] * x)
        if not np.isfinite(sums).all():
            raise ModelError("the network gave values that are not finite. Check the intensities of the image.")
        return sums

    def _network(self, tile: np.ndarray, mirrored: Sequence[int]) -> np.ndarray:
        """Return the logits of a tile (C, *patch), the mean over the flips along all combinations of axes."""
        flips = [flip for number in range(len(mirrored) + 1) for flip in itertools.combinations(mirrored, number)]
        total: Any = 0
        for flip in flips:
            axes = tuple(axis + 1 for axis in flip)
            (logits,) = self._session.run(None, {"tiles": np.ascontiguousarray(np.flip(tile, axes))[None]})
            total = total + np.flip(logits[0], axes)
        mean: np.ndarray = total / np.float32(len(flips))
        return mean
