"""An analytic abdomen: smooth shapes in mm with an intensity in HU, which vary from patient to patient.

Coordinates are the patient's in mm, with the origin in the centre of the body: x to the left, y to the back, z to the
head (LPS). A shape is given by its signed distance, negative inside. Later shapes are painted over earlier ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PHANTOM_ORGANS = ("liver", "right kidney", "spleen", "left kidney", "aorta")
Field = np.ndarray
Points = tuple[Field, Field, Field]


@dataclass(frozen=True)
class Layer:
    """A shape to paint.

    Attributes:
        distance: signed distance in mm at each point.
        intensity: HU, one value or one per point.
        organ: label of the organ, or 0.
    """

    distance: Field
    intensity: Field | float
    organ: int = 0


@dataclass(frozen=True)
class Patient:
    """The values that vary between patients. The organs are liver, right kidney, spleen, left kidney, aorta, stomach.

    Attributes:
        shift: displacement (x, y, z) of each organ, (6, 3) in mm.
        scale: factor of each organ's radii, (6, 3).
        intensity: HU of each organ, (6,).
        fat: thickness of the fat under the skin in mm.
        phase: phases of the waves that bend every shape, (3, 3) in radians.
        bowel: loops of bowel, (14, 5): x, y, z and radius in mm, intensity in HU.
    """

    shift: np.ndarray
    scale: np.ndarray
    intensity: np.ndarray
    fat: float
    phase: np.ndarray
    bowel: np.ndarray


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw a patient at random.

    Args:
        rng: the generator. One draw of contrast medium raises the intensity of all organs but the stomach.
    """
    contrast = rng.uniform(0, 1)
    mean = np.array([98 + 14 * contrast, 150 + 40 * contrast, 108 + 20 * contrast, 150 + 40 * contrast, 0, 40])
    mean[4] = 150 + 70 * contrast
    loops = rng.uniform((-75, -62, -95, 13, 15), (75, 5, -25, 21, 60), (14, 5))
    loops[rng.random(14) < 0.25, 4] = -850
    return Patient(
        shift=rng.normal(0, (5, 4, 6), (6, 3)),
        scale=rng.normal(1, 0.07, (6, 1)) * rng.normal(1, 0.04, (6, 3)),
        intensity=mean + rng.normal(0, 4, 6),
        fat=rng.uniform(10, 20),
        phase=rng.uniform(0, 2 * np.pi, (3, 3)),
        bowel=loops,
    )


def _ellipsoid(points: Points, centre: np.ndarray, radii: np.ndarray) -> Field:
    """Return the first-order signed distance to an ellipsoid; a radius of 1e9 makes a cylinder."""
    scaled = [(axis - c) / r for axis, c, r in zip(points, centre, radii, strict=True)]
    steep = [value / r for value, r in zip(scaled, radii, strict=True)]
    norm = np.sqrt(sum(value * value for value in scaled) + np.float32(1e-6))
    slope = np.sqrt(sum(value * value for value in steep) + np.float32(1e-12))
    return norm * (norm - 1) / slope


def _blend(first: Field, second: Field, width: float) -> Field:
    """Return the smooth union of two shapes, with a fillet of `width` mm where they meet."""
    mix = np.clip(0.5 + 0.5 * (second - first) / width, 0, 1)
    return second + (first - second) * mix - width * mix * (1 - mix)


def _bend(points: Points, phase: np.ndarray) -> Points:
    """Displace the points by waves of 3 mm amplitude, so that no organ is a perfect ellipsoid."""
    x, y, z = points
    waves = [np.sin(y / 19 + p[0]) + np.sin(z / 23 + p[1]) + np.sin(x / 27 + p[2]) for p in phase]
    return x + 3 * waves[0], y + 3 * waves[1], z + 3 * waves[2]


_TALL = 1e9


def layers(points: Points, patient: Patient) -> Iterator[Layer]:
    """Yield the shapes of the abdomen in the order in which they are painted.

    Args:
        points: x, y and z of each point in mm, float32 arrays of one shape.
        patient: the patient.
    """
    x, y, z = points
    bent = _bend(points, patient.phase)
    fat = patient.fat

    def shape(organ: int, centre: tuple[float, ...], radii: tuple[float, ...]) -> Field:
        return _ellipsoid(bent, np.add(centre, patient.shift[organ]), np.multiply(radii, patient.scale[organ]))

    def tall(centre: tuple[float, float], radii: tuple[float, float], of: Points = points) -> Field:
        return _ellipsoid(of, np.array([*centre, 0.0]), np.array([*radii, _TALL]))

    body = tall((0, 0), (146, 104))
    yield Layer(body, -100.0)
    wall = tall((0, 0), (146 - fat, 104 - fat))
    yield Layer(wall, 55.0)
    cavity = tall((0, -8), (146 - fat - 14, 104 - fat - 20))
    yield Layer(cavity, -95.0)
    inner = cavity + 2
    for cx, cy, cz, radius, intensity in patient.bowel:
        loop = _ellipsoid(bent, np.array([cx, cy, cz]), np.array([radius * 1.3, radius, radius]))
        yield Layer(np.maximum(loop, inner), 35.0)
        yield Layer(np.maximum(loop + 3, inner), float(intensity))
    for side in (-1, 1):
        lung = _ellipsoid(points, np.array([side * 68.0, 12, 118]), np.array([56.0, 66, 52]))
        yield Layer(np.maximum(lung, inner), -850.0)
    stomach = np.maximum(shape(5, (52, -42, 32), (42, 30, 40)), inner)
    yield Layer(stomach, 60.0)
    yield Layer(stomach + 4, np.where(y < -52, np.float32(-900), np.float32(25)))

    right_lobe = shape(0, (-64, -2, 18), (60, 68, 64))
    left_lobe = shape(0, (-8, -46, 36), (62, 27, 32))
    liver = np.maximum(_blend(right_lobe, left_lobe, 14), inner)
    yield Layer(liver, float(patient.intensity[0]), 1)
    for cy in (-12.0, 20.0):
        vessel = _ellipsoid(bent, np.array([-55.0, cy, 30]), np.array([40.0, 4.5, 5]))
        yield Layer(np.maximum(vessel, liver + 4), float(patient.intensity[0]) + 45, 1)
    yield Layer(np.maximum(shape(0, (-34, -42, -18), (13, 15, 24)), inner), 12.0)
    yield Layer(tall((-20, 22), (11, 9), bent), float(patient.intensity[4]) - 35)
    yield Layer(np.maximum(shape(2, (84, 26, 32), (31, 44, 45)), inner), float(patient.intensity[2]), 3)

    for side in (-1, 1):
        yield Layer(tall((side * 34, 46), (15, 17)), 58.0)
        yield Layer(tall((side * 32, 80), (30, 15)), 56.0)
    for organ, cx, cz, label in ((1, -62.0, -34.0, 2), (3, 62.0, -18.0, 4)):
        kidney = np.maximum(shape(organ, (cx, 38, cz), (25, 27, 50)), inner)
        cortex = float(patient.intensity[organ])
        yield Layer(kidney, cortex, label)
        yield Layer(kidney + 8, cortex - 25, label)
        inward = 9.0 if cx < 0 else -9.0
        yield Layer(shape(organ, (cx + inward * 1.7, 34, cz), (13, 9, 22)), -60.0)

    yield Layer(tall((0, 50), (21, 17)), 380.0)
    marrow = tall((0, 50), (18, 14))
    disc = np.abs((z + 10) % 34 - 17) - 12.5
    yield Layer(np.maximum(marrow, disc), 190.0)
    yield Layer(np.maximum(tall((0, 50), (21, 17)), -disc), 85.0)
    arch = np.maximum(tall((0, 76), (15, 13)), disc)
    yield Layer(arch, 340.0)
    yield Layer(np.maximum(tall((0, 92), (4, 14)), disc), 330.0)
    yield Layer(np.maximum(np.maximum(np.abs(x) - 38, np.abs(y - 64) - 4.5), disc + 6), 330.0)
    yield Layer(tall((0, 73), (9, 7.5)), 30.0)
    yield Layer(
        tall((12 + patient.shift[4, 0] / 2, 25), (11.5 * patient.scale[4, 0],) * 2, bent), patient.intensity[4], 5
    )

    angle = np.abs(np.arctan2(x, y))
    along = (z + 38 * angle + 10) % 32 - 16
    rib = np.hypot(wall + 7, along * 0.8) - 4.5
    yield Layer(np.maximum(rib, np.maximum(12 - 22 * (angle - 0.6), -(z + 15 - 10 * angle))), 330.0)
