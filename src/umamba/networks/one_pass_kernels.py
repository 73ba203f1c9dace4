"""Compiled copies between the cells of a transposed convolution and feature maps with the channels last.

Arrays hold the bits of bfloat16 numbers: cells (B, z, y, x, kz, ky, kx, C), the map (B, Z, Y, X, C + K) and the skip
(B, Z, Y, X, K), with Z = z kz and so on. A call does the rows `first` to `stop`, counted over B, Z and Y.
"""

import numba

_compile = numba.njit(nogil=True, cache=True, error_model="numpy")


@_compile
def join(cells, skip, first, stop, out):  # type: ignore[no-untyped-def]
    """Fill rows of the map with the cells and the skip."""
    slices, rows = out.shape[1:3]
    deep, high, wide, channels = cells.shape[4:]
    for number in range(first, stop):
        b, z, y = number // (slices * rows), number // rows % slices, number % rows
        other, into = skip[b, z, y], out[b, z, y]
        for cell in range(cells.shape[3]):
            own = cells[b, z // deep, y // high, cell, z % deep, y % high]
            for within in range(wide):
                x = cell * wide + within
                for c in range(channels):
                    into[x, c] = own[within, c]
                for c in range(other.shape[1]):
                    into[x, channels + c] = other[x, c]


@_compile
def separate(whole, first, stop, cells, skip):  # type: ignore[no-untyped-def]
    """Fill rows of cells and skip with the map: the way back of `join`."""
    slices, rows = whole.shape[1:3]
    deep, high, wide, channels = cells.shape[4:]
    for number in range(first, stop):
        b, z, y = number // (slices * rows), number // rows % slices, number % rows
        other, source = skip[b, z, y], whole[b, z, y]
        for cell in range(cells.shape[3]):
            own = cells[b, z // deep, y // high, cell, z % deep, y % high]
            for within in range(wide):
                x = cell * wide + within
                for c in range(channels):
                    own[within, c] = source[x, c]
                for c in range(other.shape[1]):
                    other[x, c] = source[x, channels + c]
