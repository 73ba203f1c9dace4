"""What the `augmentation` group says: kinds, probabilities and ranges (defaults of the ranges: nnU-Net 2.8.1's).

A kind that is not mentioned, is null or has p = 0 is off.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from umamba.io import UserError

Range = tuple[float, float]


@dataclass(frozen=True)
class Rotation:
    """Rotation about the patch centre."""

    p: float = 0.0  # probability per patch
    degrees_3d: float = 30.0  # largest angle about each axis, 3D patches
    degrees_in_plane: float = 180.0  # largest angle, 2D patches and flat 3D patches (in-plane only)
    degrees_elongated: float = 15.0  # largest angle, 2D patches with one edge more than 1.5 times the other


@dataclass(frozen=True)
class Scaling:
    """Zoom by one factor for all axes."""

    p: float = 0.0  # probability per patch
    factor: Range = (0.7, 1.4)  # extent of what is shown relative to the patch; above 1 objects get smaller


@dataclass(frozen=True)
class Noise:
    """Additive Gaussian noise."""

    p: float = 0.0  # probability per patch
    std: Range = (0.0, 0.1)  # standard deviation, same for all channels


@dataclass(frozen=True)
class Blur:
    """Gaussian blur."""

    p: float = 0.0  # probability per patch
    p_channel: float = 0.5  # probability of each channel then
    sigma: Range = (0.5, 1.0)  # voxels, drawn per axis and channel


@dataclass(frozen=True)
class Factor:
    """Multiplication per channel, drawn half the time below and half the time above 1."""

    p: float = 0.0  # probability per patch
    factor: Range = (0.75, 1.25)  # range of the factor


@dataclass(frozen=True)
class LowResolution:
    """Nearest-neighbour reduction and linear enlargement."""

    p: float = 0.0  # probability per patch
    p_channel: float = 0.5  # probability of each channel then
    factor: Range = (0.5, 1.0)  # size of the reduced patch relative to the patch


@dataclass(frozen=True)
class GammaCurve:
    """Power law on the channel scaled to 0..1, mean and standard deviation restored."""

    p: float = 0.0  # probability per patch
    exponent: Range = (0.7, 1.5)  # drawn half the time below and half the time above 1


@dataclass(frozen=True)
class Mirror:
    """Mirroring along axes."""

    p: float = 0.0  # probability of each axis
    axes: tuple[int, ...] | None = None  # patch axes that are mirrored; null: all


@dataclass(frozen=True)
class Augmentation:
    """Where patches are augmented, and all kinds in the order in which they are applied."""

    device: str = "cpu"  # cpu: by the processes that make patches; gpu: where the network is, as batches arrive
    rotation: Rotation = field(default_factory=Rotation)
    scaling: Scaling = field(default_factory=Scaling)
    noise: Noise = field(default_factory=Noise)
    blur: Blur = field(default_factory=Blur)
    brightness: Factor = field(default_factory=Factor)
    contrast: Factor = field(default_factory=Factor)
    low_resolution: LowResolution = field(default_factory=LowResolution)
    gamma_negated: GammaCurve = field(default_factory=GammaCurve)
    gamma: GammaCurve = field(default_factory=GammaCurve)
    mirror: Mirror = field(default_factory=Mirror)


def read_augmentation(group: Mapping[str, Any] | None, dim: int) -> Augmentation:
    """Return the checked settings of the `augmentation` group for patches with `dim` axes.

    Raises:
        UserError: an unknown kind or key, a probability outside 0..1, or no valid range; the key is named.
    """
    kinds = {entry.name: entry.default_factory for entry in fields(Augmentation) if entry.name != "device"}
    values: dict[str, Any] = {}
    for name, given in (group or {}).items():
        if name == "device":
            values[name] = _device(given)
            continue
        if name not in kinds:
            raise UserError(f"augmentation.{name}: unknown kind. Known: {', '.join(kinds)}.")
        if given is None:
            continue
        if not isinstance(given, Mapping):
            raise UserError(f"augmentation.{name}={given!r}: must hold keys, e.g. augmentation.{name}.p=0.2.")
        default = kinds[name]()  # type: ignore[operator,misc]
        values[name] = _read_kind(f"augmentation.{name}", given, default, dim)
    return Augmentation(**values)


def mirrored_axes(group: Mapping[str, Any] | None, dim: int) -> tuple[int, ...]:
    """Return the patch axes that the `augmentation` group mirrors, none if it does not; see `read_augmentation`."""
    mirror = read_augmentation(group, dim).mirror
    if not mirror.p:
        return ()
    return tuple(range(dim)) if mirror.axes is None else mirror.axes


def _device(given: Any) -> str:
    if given not in ("cpu", "gpu"):
        raise UserError(f"augmentation.device={given}: must be cpu or gpu.")
    return str(given)


def _read_kind(path: str, given: Mapping[str, Any], default: Any, dim: int) -> Any:
    known = {entry.name: getattr(default, entry.name) for entry in fields(default)}
    checked: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{path}.{key}: unknown key. Known: {', '.join(known)}.")
        name = f"{path}.{key}"
        if key == "axes":
            checked[key] = _axes(name, value, dim)
        elif isinstance(known[key], tuple):
            checked[key] = _range(name, value, lowest_included=key == "std", highest=_highest(path, key))
        else:
            upper = 1.0 if key.startswith("p") else 180.0
            checked[key] = _number(name, value, upper)
    return type(default)(**checked)


def _highest(path: str, key: str) -> float:
    return 1.0 if path.endswith("low_resolution") and key == "factor" else float("inf")


def _number(name: str, value: Any, upper: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= upper:
        raise UserError(f"{name}={value!r}: must be a number from 0 to {upper:g}.")
    return float(value)


def _range(name: str, value: Any, *, lowest_included: bool, highest: float) -> Range:
    pair = list(value) if isinstance(value, (list, tuple)) else []
    numbers = len(pair) == 2 and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in pair)
    if not numbers or not (0 <= pair[0] <= pair[1] <= highest) or (pair[0] == 0 and not lowest_included):
        bound = f", at most {highest:g}" if highest < float("inf") else ""
        sign = "not negative" if lowest_included else "positive"
        raise UserError(f"{name}={value!r}: must be a range [low, high] with low <= high, {sign}{bound}.")
    return float(pair[0]), float(pair[1])


def _axes(name: str, value: Any, dim: int) -> tuple[int, ...] | None:
    if value is None:
        return None
    axes = list(value) if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < dim for axis in axes):
        raise UserError(f"{name}={value!r}: must be null (all) or patch axes from 0 to {dim - 1}.")
    return tuple(sorted(set(axes)))
