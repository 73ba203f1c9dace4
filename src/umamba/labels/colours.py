"""Distinct colours for overlays: hues stepped by the golden ratio, so that any number of them can be told apart."""

import colorsys

import numpy as np

_GOLDEN = 0.6180339887498949
# Lightness and saturation change every 8 colours, because after that many steps the hues come close to earlier ones.
_SHADES = ((0.55, 0.85), (0.70, 0.75), (0.42, 0.80))


def colours(n: int) -> np.ndarray:
    """Return distinct colours, starting at red.

    Args:
        n: how many; the first k colours are the same for every n >= k.

    Returns:
        RGB (n, 3) uint8.
    """
    table = np.empty((n, 3), dtype=np.uint8)
    for index in range(n):
        lightness, saturation = _SHADES[(index // 8) % len(_SHADES)]
        rgb = colorsys.hls_to_rgb((index * _GOLDEN) % 1.0, lightness, saturation)
        table[index] = [round(255 * channel) for channel in rgb]
    return table
