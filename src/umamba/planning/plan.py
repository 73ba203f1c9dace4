"""The plan: everything that later rooms know of a dataset's geometry and of its networks' shape.

Follows the content of nnU-Net's plans file; axes are transposed so that the one of lowest resolution comes first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from umamba.io import UserError

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Intensity:
    """Foreground intensities of a channel over the training cases."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class Configuration:
    """One way to train on a dataset: a resolution, a patch and a network's shape.

    Attributes:
        name: "2d", "3d_fullres" or "3d_lowres".
        spacing: target spacing in mm, transposed axes, one entry an axis of the patch.
        median_shape: median image size at that spacing in voxels; may end in .5.
        patch_size: voxels.
        batch_size: patches per batch.
        batch_dice: sum the Dice over the batch before the ratio is taken.
        normalization: nnU-Net's scheme name per channel.
        use_mask_for_norm: per channel, whether only voxels inside the nonzero mask are normalised.
        strides: of each encoder stage, the first all 1.
        kernel_sizes: of each encoder stage.
        features_per_stage: feature maps of each encoder stage.
        encoder_blocks: convolutions, or residual blocks, of each encoder stage.
        decoder_blocks: convolutions of each decoder stage, one entry fewer.
        residual_encoder: whether the encoder was planned with residual blocks.
    """

    name: str
    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    batch_dice: bool
    normalization: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    features_per_stage: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    residual_encoder: bool

    @property
    def dim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.patch_size)

    @property
    def num_stages(self) -> int:
        """Number of encoder stages, the bottleneck included."""
        return len(self.strides)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return _as_json(asdict(self))

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> "Configuration":
        """Read what `to_json` returned.

        Raises:
            UserError: a key is missing or of another form.
        """
        return parse_record("configuration", obj, _configuration)


@dataclass(frozen=True)
class Plan:
    """How a dataset is preprocessed and what networks fit it.

    Attributes:
        dataset_name: e.g. "Dataset004_Hippocampus".
        rules: name of the rule set that made the plan.
        transpose_forward: file axis of each plan axis.
        transpose_backward: plan axis of each file axis.
        median_spacing: median of the training cases in mm, plan axes.
        median_shape: median of their cropped sizes in voxels at their own spacing, plan axes.
        intensity: foreground intensities per channel.
        configurations: by name.
        decisions: what was decided and the numbers that led to it, in order; neither compared nor stored.
    """

    dataset_name: str
    rules: str
    transpose_forward: tuple[int, int, int]
    transpose_backward: tuple[int, int, int]
    median_spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    intensity: tuple[Intensity, ...]
    configurations: Mapping[str, Configuration]
    decisions: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def configuration(self, name: str) -> Configuration:
        """Return a configuration by name.

        Raises:
            UserError: there is none of that name.
        """
        if name not in self.configurations:
            raise UserError(
                f"plan.configuration={name}: the plan of {self.dataset_name} has no such configuration. "
                f"Choose one of {', '.join(self.configurations)}."
            )
        return self.configurations[name]

    def to_json(self) -> dict[str, Any]:
        """Return the plan, without its decisions, as JSON-able values."""
        names = [entry.name for entry in fields(self) if entry.name not in ("intensity", "configurations", "decisions")]
        return {
            **_as_json({name: getattr(self, name) for name in names}),
            "intensity": [asdict(channel) for channel in self.intensity],
            "configurations": {name: entry.to_json() for name, entry in self.configurations.items()},
        }

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> "Plan":
        """Read what `to_json` returned.

        Raises:
            UserError: a key is missing or of another form.
        """
        return parse_record("plan", obj, _plan)


def parse_record(what: str, obj: Any, parse: Callable[[Any], Parsed]) -> Parsed:
    """Return parse(obj); a missing key or a value of another form becomes a UserError that begins with `what`."""
    try:
        return parse(obj)
    except KeyError as error:
        raise UserError(f"{what}: {error} is missing. Is it a file of another kind, or cut off?") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{what}: a value has an unexpected form ({error}). Is it of another version?") from error


def axis3(values: Sequence[int]) -> tuple[int, int, int]:
    """Return three integers as a tuple; ValueError if there are not three."""
    first, second, third = values
    return int(first), int(second), int(third)


def stages(values: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Return nested integers as tuples."""
    return tuple(tuple(int(item) for item in entry) for entry in values)


def integers(values: Sequence[int]) -> tuple[int, ...]:
    """Return integers as a tuple."""
    return tuple(int(value) for value in values)


def numbers(values: Sequence[float]) -> tuple[float, ...]:
    """Return floats as a tuple."""
    return tuple(float(value) for value in values)


def _configuration(obj: Mapping[str, Any]) -> Configuration:
    return Configuration(
        name=str(obj["name"]),
        spacing=numbers(obj["spacing"]),
        median_shape=numbers(obj["median_shape"]),
        patch_size=integers(obj["patch_size"]),
        batch_size=int(obj["batch_size"]),
        batch_dice=bool(obj["batch_dice"]),
        normalization=tuple(str(scheme) for scheme in obj["normalization"]),
        use_mask_for_norm=tuple(bool(use) for use in obj["use_mask_for_norm"]),
        strides=stages(obj["strides"]),
        kernel_sizes=stages(obj["kernel_sizes"]),
        features_per_stage=integers(obj["features_per_stage"]),
        encoder_blocks=integers(obj["encoder_blocks"]),
        decoder_blocks=integers(obj["decoder_blocks"]),
        residual_encoder=bool(obj["residual_encoder"]),
    )


def _plan(obj: Mapping[str, Any]) -> Plan:
    return Plan(
        dataset_name=str(obj["dataset_name"]),
        rules=str(obj["rules"]),
        transpose_forward=axis3(obj["transpose_forward"]),
        transpose_backward=axis3(obj["transpose_backward"]),
        median_spacing=numbers(obj["median_spacing"]),
        median_shape=numbers(obj["median_shape"]),
        intensity=tuple(Intensity(**channel) for channel in obj["intensity"]),
        configurations={str(name): _configuration(entry) for name, entry in obj["configurations"].items()},
    )


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value
