"""SHA-256 of images, label maps, weights and plain values: equal where the content is, whatever file holds it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umamba.io import Image


def plain_digest(value: Any) -> str:
    """Return the hash of a plain value, whatever the order of its keys.

    Args:
        value: what the `json` module can write; floats count with all their digits.

    >>> plain_digest({"a": 1, "b": 2}) == plain_digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def image_digest(image: Image, previous: Image | None = None) -> str:
    """Return the hash of an image as it was read: voxels with their type, spacing, origin and direction.

    Args:
        image: (C, Z, Y, X); how its files are compressed or named does not count.
        previous: the segmentation by the first stage of a cascade (1, Z, Y, X), which counts, too.
    """
    if previous is not None:
        return plain_digest([image_digest(image), label_digest(previous.array)])
    geometry = image.geometry
    places = (geometry.spacing, geometry.origin_xyz, geometry.direction_xyz)
    header = [[float(value) for value in values] for values in places]
    return _of_array(image.array, [header, geometry.is_2d])


def label_digest(segmentation: np.ndarray) -> str:
    """Return the hash of the voxels of a label map, whatever integer type holds them.

    Args:
        segmentation: (Z, Y, X), not negative.

    >>> label_digest(np.zeros((1, 2, 2), np.uint8)) == label_digest(np.zeros((1, 2, 2), np.int64))
    True
    """
    return _of_array(segmentation.astype(np.min_scalar_type(int(segmentation.max(initial=0))), copy=False), None)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return the hash of a network's parameters and buffers: names, types, shapes and all bits.

    Args:
        weights: name -> tensor, as `state_dict` gives them.
    """
    return _of(_parts(weights))


def _parts(weights: Mapping[str, Tensor]) -> Iterable[bytes | memoryview]:
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        yield json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _of_array(array: np.ndarray, header: Any) -> str:
    """Return the hash of an array in little-endian order and of what belongs to it."""
    kind = array.dtype.newbyteorder("<")
    start = json.dumps([header, kind.str, list(array.shape)]).encode()
    return _of([start, np.ascontiguousarray(array, dtype=kind).reshape(-1).view(np.uint8).data])


def _of(parts: Iterable[bytes | memoryview]) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)  # releases Python's lock
    return hashed.hexdigest()
