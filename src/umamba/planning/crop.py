"""Find the nonzero region of an image and its bounding box (nnU-Net: preprocessing/cropping/cropping.py)."""

import numpy as np

CropBox = tuple[slice, slice, slice]
_FEW = 0.02  # below this fraction of background voxels, following them one by one is faster than labelling components


def nonzero_extent(array: np.ndarray) -> CropBox:
    """Return the bounding box of the voxels where any channel is not 0; of an image that is 0 everywhere the whole box.

    Only the zeros around the box are looked at, so that an image without them costs next to nothing.

    Args:
        array: (C, Z, Y, X).
    """
    box = [slice(0, length) for length in array.shape[1:]]
    for axis in range(3):
        part = np.moveaxis(array[(slice(None), *box)], axis + 1, 0)
        first = next((index for index, plane in enumerate(part) if plane.any()), None)
        if first is None:
            break  # everything is 0, which the first axis shows
        last = next(index for index in range(len(part) - 1, -1, -1) if part[index].any())
        box[axis] = slice(first, last + 1)
    return box[0], box[1], box[2]


def nonzero_box(array: np.ndarray) -> tuple[np.ndarray, CropBox]:
    """Return the mask of voxels where any channel is not 0, with its holes filled, and the bounding box of the mask.

    A hole is background that is not connected to the border of the image through faces of voxels, so an image of one
    slice has no holes. An image that is 0 everywhere has an empty mask and the box of the whole image.

    Args:
        array: (C, Z, Y, X).

    Returns:
        The mask (Z, Y, X) bool, and the slices of Z, Y and X of the box.
    """
    mask = array[0] != 0
    for channel in array[1:]:
        mask |= channel != 0
    box = nonzero_extent(mask[None])
    inside = mask[box]
    if not inside.all():
        # Everything outside the box is background, so the holes can be found inside the box alone.
        mask[box] = ~_reaching_border(~inside)
    return mask, box


def _reaching_border(background: np.ndarray) -> np.ndarray:
    """Return the components (connected by faces) of a mask (Z, Y, X) that touch the border of the volume."""
    touching = np.zeros_like(background)
    for axis in range(3):
        for end in (0, -1):
            face = tuple(end if other == axis else slice(None) for other in range(3))
            touching[face] = background[face]
    if np.count_nonzero(background) > _FEW * background.size:
        from scipy import ndimage  # takes a while to load

        components, count = ndimage.label(background)
        kept = np.zeros(count + 1, dtype=bool)
        kept[components[touching]] = True
        return kept[components]
    # There are few voxels, such as the zeros among a CT's intensities: follow them from the border inwards. A frame of
    # False around the volume stops the search.
    padded = np.pad(background, 1)
    reached, open_ones = np.zeros(padded.size, dtype=bool), padded.ravel()
    _, height, width = padded.shape
    steps = np.array([-height * width, -width, -1, 1, width, height * width])
    front = np.flatnonzero(np.pad(touching, 1))
    while front.size:
        reached[front] = True
        front = np.unique(front[:, None] + steps)
        front = front[open_ones[front] & ~reached[front]]
    return reached.reshape(padded.shape)[1:-1, 1:-1, 1:-1]
