"""The `augmentation` group: kinds, probabilities and ranges. The defaults are nnU-Net 2.8.1's.

A kind that is null, or has p = 0, is off.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from umamba.settings.fields import key
from umamba.settings.torchio_arguments import argument_problems
from umamba.settings.validate import InvalidSettings, Settings, parse

Range = tuple[float, float]
_OFF = {"p": 0.0}  # null turns a kind of augmentation off


def _ordered(section: str, name: str, values: Range, *, zero: bool = False) -> Iterator[str]:
    """Yield the mistake of a range whose ends are in the wrong order, or that starts at zero although it must not."""
    if values[0] > values[1] or (values[0] == 0 and not zero):
        sign = "" if zero else ", above 0"
        yield f"{section}.{name}={list(values)}: must be a range [low, high] with low <= high{sign}."


@dataclass(frozen=True)
class Rotation(Settings):
    """Rotation about the patch centre."""

    section: ClassVar[str] = "augmentation.rotation"
    p: float = key(0.2, "Probability for each patch.", low=0, high=1)
    degrees_3d: float = key(30.0, "Largest angle about each axis, degrees, for 3D patches.", low=0, high=180)
    degrees_in_plane: float = key(
        180.0,
        "Largest angle, degrees, for 2D patches and for flat 3D patches (largest edge > 3 times the first), which are "
        "rotated in-plane only.",
        low=0,
        high=180,
    )
    degrees_elongated: float = key(
        15.0,
        "Largest angle, degrees, for 2D patches with one edge more than 1.5 times the other.",
        low=0,
        high=180,
    )


@dataclass(frozen=True)
class Scaling(Settings):
    """Zoom by one factor for all axes."""

    section: ClassVar[str] = "augmentation.scaling"
    p: float = key(0.2, "Probability for each patch, independent of the rotation's.", low=0, high=1)
    factor: Range = key(
        (0.7, 1.4), "Extent of the sampled region relative to the patch; above 1 objects get smaller.", low=0
    )

    def conflicts(self) -> Iterator[str]:
        """Yield a wrong range."""
        return _ordered(self.section, "factor", self.factor)


@dataclass(frozen=True)
class Noise(Settings):
    """Additive Gaussian noise."""

    section: ClassVar[str] = "augmentation.noise"
    p: float = key(0.1, "Probability for each patch.", low=0, high=1)
    std: Range = key((0.0, 0.1), "Range of the standard deviation, one value for all channels.", low=0)

    def conflicts(self) -> Iterator[str]:
        """Yield a wrong range."""
        return _ordered(self.section, "std", self.std, zero=True)


@dataclass(frozen=True)
class Blur(Settings):
    """Gaussian blur."""

    section: ClassVar[str] = "augmentation.blur"
    p: float = key(0.2, "Probability for each patch.", low=0, high=1)
    p_channel: float = key(0.5, "Probability for each channel of such a patch.", low=0, high=1)
    sigma: Range = key((0.5, 1.0), "Range of sigma in voxels, drawn for each axis and channel.", low=0)

    def conflicts(self) -> Iterator[str]:
        """Yield a wrong range."""
        return _ordered(self.section, "sigma", self.sigma)


@dataclass(frozen=True)
class Brightness(Settings):
    """Multiplication of each channel by a factor."""

    section: ClassVar[str] = "augmentation.brightness"
    p: float = key(0.15, "Probability for each patch.", low=0, high=1)
    factor: Range = key((0.75, 1.25), "Range of the factor, half the time below and half the time above 1.", low=0)

    def conflicts(self) -> Iterator[str]:
        """Yield a wrong range."""
        return _ordered(self.section, "factor", self.factor)


@dataclass(frozen=True)
class Contrast(Brightness):
    """Multiplication of each channel's distance from its mean, clipped to the range that the channel had."""

    section: ClassVar[str] = "augmentation.contrast"


@dataclass(frozen=True)
class LowResolution(Settings):
    """Downsampling by nearest neighbour, then linear upsampling to the old size."""

    section: ClassVar[str] = "augmentation.low_resolution"
    p: float = key(0.25, "Probability for each patch.", low=0, high=1)
    p_channel: float = key(0.5, "Probability for each channel of such a patch.", low=0, high=1)
    factor: Range = key(
        (0.5, 1.0), "Range of the downsampled size relative to the patch, one factor for all axes.", low=0, high=1
    )

    def conflicts(self) -> Iterator[str]:
        """Yield a wrong range."""
        return _ordered(self.section, "factor", self.factor)


@dataclass(frozen=True)
class Gamma(Settings):
    """Power law on the channel scaled to 0..1; its mean and standard deviation are restored afterwards."""

    section: ClassVar[str] = "augmentation.gamma"
    p: float = key(0.3, "Probability for each patch.", low=0, high=1)
    exponent: Range = key((0.7, 1.5), "Range of the exponent, half the time below and half the time above 1.", low=0)

    def conflicts(self) -> Iterator[str]:
        """Yield a wrong range."""
        return _ordered(self.section, "exponent", self.exponent)


@dataclass(frozen=True)
class GammaNegated(Gamma):
    """The same power law on the negated channel."""

    section: ClassVar[str] = "augmentation.gamma_negated"
    p: float = key(0.1, "Probability for each patch.", low=0, high=1)


@dataclass(frozen=True)
class CutMix(Settings):
    """A box of the patch is replaced by that of a patch of another case, image and label (Yun et al., 2019)."""

    section: ClassVar[str] = "augmentation.cutmix"
    p: float = key(0.0, "Probability for each patch.", low=0, high=1)
    edge: Range = key(
        (0.25, 0.6), "Range of the box's edge relative to the patch's, drawn for each axis.", low=0, high=1
    )

    def conflicts(self) -> Iterator[str]:
        """Yield a wrong range."""
        return _ordered(self.section, "edge", self.edge)


@dataclass(frozen=True)
class Convolution(Settings):
    """A random filter changes how tissues look, not where they are; mean and deviation of the channel stay."""

    section: ClassVar[str] = "augmentation.convolution"
    p: float = key(0.0, "Probability for each patch.", low=0, high=1)
    p_channel: float = key(1.0, "Probability for each channel of such a patch.", low=0, high=1)
    share: Range = key(
        (0.2, 0.8), "Range of the share of the filtered channel; the rest is the channel as it was.", low=0, high=1
    )

    def conflicts(self) -> Iterator[str]:
        """Yield a wrong range."""
        return _ordered(self.section, "share", self.share, zero=True)


@dataclass(frozen=True)
class Mirror(Settings):
    """Mirroring along axes."""

    section: ClassVar[str] = "augmentation.mirror"
    p: float = key(0.5, "Probability for each axis.", low=0, high=1)
    axes: tuple[Literal[0, 1, 2], ...] | None = key(
        None, "Patch axes that are mirrored, counted from 0 (Z, Y, X in 3D; Y, X in 2D); null: all."
    )


@dataclass(frozen=True)
class PreviousStage(Settings):
    """Mistakes that are put into the labels of a cascade's previous stage (plan.configuration=3d_cascade_fullres)."""

    section: ClassVar[str] = "augmentation.previous_stage"
    p_shape: float = key(
        0.4, "Probability for each patch that labels are dilated, eroded, opened or closed.", low=0, high=1
    )
    p_removal: float = key(0.2, "Probability for each patch that labels lose a connected component.", low=0, high=1)
    p_label: float = key(0.5, "Probability for each label of such a patch.", low=0, high=1)
    radius: Range = key((1.0, 8.0), "Range of the radius of the ball that changes a shape, voxels.", low=1, high=64)
    removed_share: float = key(
        0.15, "A component that covers this share of the patch or more is not removed.", low=0, high=1
    )

    def conflicts(self) -> Iterator[str]:
        """Yield a wrong range."""
        return _ordered(self.section, "radius", self.radius)


@dataclass(frozen=True)
class ExtraTransform(Settings):
    """One transform of TorchIO: its name, its place, and TorchIO's own arguments, such as `p`."""

    section: ClassVar[str] = "augmentation.extra"
    open_field: ClassVar[str] = "arguments"
    name: str = key(sentence="TorchIO's name of the transform, such as RandomMotion.")
    place: Literal["before", "after"] = key(
        "after", "before: on the region that rotation and scaling sample. after: on the patch, after all other kinds."
    )
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def conflicts(self) -> Iterator[str]:
        """Yield a transform or an argument that TorchIO does not have, or that does not fit patches."""
        return argument_problems(self.name, self.arguments)


@dataclass(frozen=True)
class AugmentationSettings(Settings):
    """The device of the augmentation, and all kinds in the order in which they are applied."""

    section: ClassVar[str] = "augmentation"
    device: Literal["cpu", "gpu", "auto"] = key(
        "cpu",
        "cpu: the processes that make patches augment them. gpu: the network's device augments each batch, for "
        "machines with too few CPUs. auto: gpu from the second epoch on if the network waits for patches in more than "
        "a tenth of a step of the first one. All make the same patches, up to rounding.",
    )
    rotation: Rotation = key(Rotation, "Rotation about the patch centre.", null=_OFF)
    scaling: Scaling = key(Scaling, "Zoom by one factor for all axes.", null=_OFF)
    cutmix: CutMix = key(CutMix, "A box of another case's patch.", null=_OFF)
    convolution: Convolution = key(Convolution, "A random filter.", null=_OFF)
    noise: Noise = key(Noise, "Additive Gaussian noise.", null=_OFF)
    blur: Blur = key(Blur, "Gaussian blur.", null=_OFF)
    brightness: Brightness = key(Brightness, "Multiplication of each channel by a factor.", null=_OFF)
    contrast: Contrast = key(Contrast, "Multiplication of each channel's distance from its mean.", null=_OFF)
    low_resolution: LowResolution = key(LowResolution, "Downsampling and linear upsampling.", null=_OFF)
    gamma_negated: GammaNegated = key(GammaNegated, "Power law on the negated channel.", null=_OFF)
    gamma: Gamma = key(Gamma, "Power law on the channel.", null=_OFF)
    mirror: Mirror = key(Mirror, "Mirroring along axes.", null=_OFF)
    previous_stage: PreviousStage = key(
        PreviousStage, "Mistakes in the labels of a cascade's previous stage.", null={"p_shape": 0.0, "p_removal": 0.0}
    )
    extra: tuple[ExtraTransform, ...] = key(
        (),
        "Transforms of TorchIO by name, each with TorchIO's arguments, such as [{name: RandomMotion, p: 0.1, "
        "degrees: 5}]; `place: before` applies one before the other kinds instead of after them.",
    )

    def conflicts(self) -> Iterator[str]:
        """Yield what cannot be done on a GPU."""
        if self.cutmix.p and self.device == "gpu":
            yield (
                "augmentation.device=gpu: the patches of other cases (augmentation.cutmix) are read by the processes "
                "that make patches. Give augmentation.device=cpu or auto."
            )
        if self.extra and self.device == "gpu":
            yield "augmentation.device=gpu: TorchIO's transforms (augmentation.extra) run on the CPU. Give cpu."

    @classmethod
    def off(cls) -> "AugmentationSettings":
        """Return settings that augment nothing.

        >>> AugmentationSettings.off().noise.p
        0.0
        """
        return parse(cls, {entry.name: None for entry in fields(cls) if entry.name not in ("device", "extra")})

    def mirrored_axes(self, dim: int) -> tuple[int, ...]:
        """Return the axes that are mirrored; none if mirroring is off.

        Args:
            dim: number of axes of a patch.

        Raises:
            InvalidSettings: `mirror.axes` names an axis that the patches do not have.

        >>> AugmentationSettings().mirrored_axes(2)
        (0, 1)
        """
        if not self.mirror.p:
            return ()
        if self.mirror.axes is None:
            return tuple(range(dim))
        axes = tuple(sorted(set(self.mirror.axes)))
        if axes and axes[-1] >= dim:
            message = f"augmentation.mirror.axes={list(axes)}: {dim}D patches have the axes 0 to {dim - 1}; null: all."
            raise InvalidSettings([message])
        return axes
