"""An analytic abdomen: smooth shapes in mm with an intensity in HU, which vary from patient to patient.

The origin of the coordinates is the centre of the body. Later shapes are painted over earlier ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from umamba.datasets.shapes import TALL, Ellipsoid, Field, Grid, Points, Shape, union

PHANTOM_ORGANS = ("liver", "right kidney", "spleen", "left kidney", "aorta")
_SWAY_MM = 3.0  # amplitude of a wave that bends the organs


@dataclass(frozen=True)
class Layer:
    """A shape with its intensity.

    Attributes:
        shape: what is painted.
        intensity: HU, one value or one for each point of the shape's window.
        organ: label of the organ, or 0.
    """

    shape: Shape
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


def _bend(points: Points, phase: np.ndarray) -> Points:
    """Displace the points by three waves along each axis, so that no organ is a perfect ellipsoid."""
    x, y, z = points
    waves = [np.sin(y / 19 + p[0]) + np.sin(z / 23 + p[1]) + np.sin(x / 27 + p[2]) for p in phase]
    return x + _SWAY_MM * waves[0], y + _SWAY_MM * waves[1], z + _SWAY_MM * waves[2]


def layers(grid: Grid, patient: Patient) -> Iterator[Layer]:
    """Yield the shapes of the abdomen in the order in which they are painted.

    Args:
        grid: the points of the image.
        patient: the patient.
    """
    points = x, y, z = grid.points
    bent = _bend(points, patient.phase)
    fat = patient.fat

    def soft(centre: Sequence[float], radii: Sequence[float]) -> Ellipsoid:
        return Ellipsoid(centre, radii, bent, 3 * _SWAY_MM)

    def organ(number: int, centre: Sequence[float], radii: Sequence[float]) -> Ellipsoid:
        return soft(np.add(centre, patient.shift[number]).tolist(), np.multiply(radii, patient.scale[number]).tolist())

    def drawn(ellipsoid: Ellipsoid) -> Shape:
        window = ellipsoid.window(grid)
        return Shape(window, ellipsoid.on(window))

    def tall(centre: tuple[float, float], radii: tuple[float, float]) -> Shape:
        return drawn(Ellipsoid((*centre, 0), (*radii, TALL), points))

    everywhere = grid.everything
    yield Layer(tall((0, 0), (146, 104)), -100.0)
    wall = Ellipsoid((0, 0, 0), (146 - fat, 104 - fat, TALL), points).on(everywhere)
    yield Layer(Shape(everywhere, wall), 55.0)
    cavity = Ellipsoid((0, -8, 0), (146 - fat - 14, 104 - fat - 20, TALL), points).on(everywhere)
    yield Layer(Shape(everywhere, cavity), -95.0)
    inner = cavity + 2
    for cx, cy, cz, radius, intensity in patient.bowel:
        loop = drawn(soft((cx, cy, cz), (radius * 1.3, radius, radius)))
        yield Layer(loop.within(inner), 35.0)
        yield Layer(loop.shrunk(3).within(inner), float(intensity))
    for side in (-1, 1):
        yield Layer(drawn(Ellipsoid((side * 68, 12, 118), (56, 66, 52), points)).within(inner), -850.0)
    stomach = drawn(organ(5, (52, -42, 32), (42, 30, 40))).within(inner)
    yield Layer(stomach, 60.0)
    yield Layer(stomach.shrunk(4), np.where(y[stomach.window] < -52, np.float32(-900), np.float32(25)))

    right_lobe = organ(0, (-64, -2, 18), (60, 68, 64))
    left_lobe = organ(0, (-8, -46, 36), (62, 27, 32))
    liver = union(right_lobe, left_lobe, 14, grid).within(inner)
    yield Layer(liver, float(patient.intensity[0]), 1)
    for cy in (-12.0, 20.0):
        vessel = soft((-55, cy, 30), (40, 4.5, 5)).on(liver.window)
        yield Layer(Shape(liver.window, np.maximum(vessel, liver.distance + 4)), float(patient.intensity[0]) + 45, 1)
    yield Layer(drawn(organ(0, (-34, -42, -18), (13, 15, 24))).within(inner), 12.0)
    yield Layer(drawn(soft((-20, 22, 0), (11, 9, TALL))), float(patient.intensity[4]) - 35)
    yield Layer(drawn(organ(2, (84, 26, 32), (31, 44, 45))).within(inner), float(patient.intensity[2]), 3)

    for side in (-1, 1):
        yield Layer(tall((side * 34, 46), (15, 17)), 58.0)
        yield Layer(tall((side * 32, 80), (30, 15)), 56.0)
    for number, cx, cz, label in ((1, -62.0, -34.0, 2), (3, 62.0, -18.0, 4)):
        kidney = drawn(organ(number, (cx, 38, cz), (25, 27, 50))).within(inner)
        cortex = float(patient.intensity[number])
        yield Layer(kidney, cortex, label)
        yield Layer(kidney.shrunk(8), cortex - 25, label)
        inward = 9.0 if cx < 0 else -9.0
        yield Layer(drawn(organ(number, (cx + inward * 1.7, 34, cz), (13, 9, 22))), -60.0)

    spine = tall((0, 50), (21, 17))
    yield Layer(spine, 380.0)
    disc = np.abs((z + 10) % 34 - 17) - 12.5
    yield Layer(tall((0, 50), (18, 14)).within(disc), 190.0)
    yield Layer(spine.within(-disc), 85.0)
    yield Layer(tall((0, 76), (15, 13)).within(disc), 340.0)
    yield Layer(tall((0, 92), (4, 14)).within(disc), 330.0)
    across = grid.window(
        (-38 - grid.edge_mm, 59.5 - grid.edge_mm, -TALL), (38 + grid.edge_mm, 68.5 + grid.edge_mm, TALL)
    )
    processes = np.maximum(np.abs(x[across]) - 38, np.abs(y[across] - 64) - 4.5)
    yield Layer(Shape(across, processes).within(disc + 6), 330.0)
    yield Layer(tall((0, 73), (9, 7.5)), 30.0)
    width = 11.5 * patient.scale[4, 0]
    yield Layer(drawn(soft((12 + patient.shift[4, 0] / 2, 25, 0), (width, width, TALL))), patient.intensity[4], 5)

    angle = np.abs(np.arctan2(x, y))
    along = (z + 38 * angle + 10) % 32 - 16
    rib = np.hypot(wall + 7, along * 0.8) - 4.5
    ends = np.maximum(12 - 22 * (angle - 0.6), -(z + 15 - 10 * angle))
    yield Layer(Shape(everywhere, np.maximum(rib, ends)), 330.0)
