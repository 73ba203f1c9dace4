"""Adds the weighted logits of tiles to sums in half precision: compiled, because PyTorch converts half floats slowly.

The result has the bits of `sums += logits * weights` in PyTorch: the product and the sum are rounded to float32, then
the sum to float16, to the nearest and of two to the even one.
"""

import numba
import numpy as np
from torch import Tensor


def add_weighted(
    sums: Tensor, start: tuple[int, int, int], part: Tensor, weights: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Add part * weights to a box of the sums.

    Args:
        sums: (Z, Y, X) float16 on the CPU, contiguous.
        start: first voxel of the box.
        part: the logits (z, y, x), on the CPU, of any floating type.
        weights: float32, the weights along each axis, (z,), (y,) and (x,); those of a voxel are their product.
    """
    if sums.dtype.itemsize != 2 or not sums.dtype.is_floating_point or not sums.is_contiguous():
        raise ValueError("the sums must be contiguous and in half precision")
    box = (slice(first, first + length) for first, length in zip(start, part.shape, strict=True))
    if sums[tuple(box)].shape != part.shape:
        raise ValueError(f"a box of {tuple(part.shape)} at {start} exceeds the sums of {tuple(sums.shape)}")
    along = [each.contiguous().numpy() for each in weights]
    _add(sums.numpy().view(np.uint16), *start, part.float().contiguous().numpy(), *along)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add(sums, first_z, first_y, first_x, part, weights_z, weights_y, weights_x):  # type: ignore[no-untyped-def]
    """Add to float16 values that are given as their bits; each operation has a vector instruction."""
    length = len(weights_x)
    for z in range(len(weights_z)):
        for y in range(len(weights_y)):
            weight = weights_z[z] * weights_y[y]
            row = sums[first_z + z, first_y + y, first_x : first_x + length]
            logits = part[z, y]
            for x in range(length):
                half = np.uint32(row[x])
                # float16 to float32: exponent and mantissa moved into place, then the larger bias of the exponent.
                moved = np.uint32((half & np.uint32(0x7FFF)) << np.uint32(13))
                endless = np.uint32(0x70000000) if moved >= np.uint32(0x0F800000) else np.uint32(0)
                size = np.float32(np.uint32(moved | endless).view(np.float32) * np.float32(2.0**112))
                sign = np.uint32((half & np.uint32(0x8000)) << np.uint32(16))
                before = np.uint32(np.float32(size).view(np.uint32) | sign)
                total = np.float32(np.uint32(before).view(np.float32) + logits[x] * (weight * weights_x[x]))
                # float32 to float16. Below 2^-14 the sum with 0.5 rounds to multiples of 2^-24, as float16 does there.
                bits = np.uint32(np.float32(total).view(np.uint32))
                size_bits = np.uint32(bits & np.uint32(0x7FFFFFFF))
                tiny = np.float32(np.uint32(size_bits).view(np.float32) + np.float32(0.5))
                small = np.uint32(np.float32(tiny).view(np.uint32) - np.uint32(0x3F000000))
                even = np.uint32((size_bits >> np.uint32(13)) & np.uint32(1))
                large = np.uint32(np.uint32(size_bits + np.uint32(0xC8000FFF) + even) >> np.uint32(13))
                result = small if size_bits < np.uint32(0x38800000) else large
                result = np.uint32(0x7C00) if size_bits >= np.uint32(0x477FF000) else result  # infinite
                result = np.uint32(0x7E00) if size_bits > np.uint32(0x7F800000) else result  # not a number
                row[x] = np.uint16(result | np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000)))
