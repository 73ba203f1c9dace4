"""Distinct colours for overlays: hues stepped by the golden ratio, so that any number of them stays apart."""

import colorsys

import numpy as np

_GOLDEN = 0.6180339887498949
# Lightness and saturation alternate so that hues that come close after many steps still differ.
_SHADES = ((0.55, 0.85), (0.70, 0.75), (0.42, 0.80))


def colours(n: int) -> np.ndarray:
    """Return n colours as (n, 3) uint8 RGB; the first k are the same for every n >= k. Starts at red."""
    table = np.empty((n, 3), dtype=np.uint8)
    for index in range(n):
        lightness, saturation = _SHADES[(index // 8) % len(_SHADES)]
        rgb = colorsys.hls_to_rgb((index * _GOLDEN) % 1.0, lightness, saturation)
        table[index] = [round(255 * channel) for channel in rgb]
    return table
