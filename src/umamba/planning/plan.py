"""The plan: all that later steps know about the geometry of a dataset and the shape of its networks.

The content follows nnU-Net's plans file. Axes are transposed so that the axis of lowest resolution comes first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from umamba.datasets import REORIENTING_READER
from umamba.io import UserError

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Intensity:
    """Statistics of the foreground intensities of one channel over the training cases.

    Attributes:
        mean: mean.
        median: median.
        std: population standard deviation.
        min: minimum.
        max: maximum.
        percentile_00_5: percentile 0.5.
        percentile_99_5: percentile 99.5.
    """

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class Configuration:
    """One way to train on a dataset: a resolution, a patch size and the shape of a network. Axes are plan axes.

    Attributes:
        name: "2d", "3d_fullres" or "3d_lowres".
        spacing: target spacing in mm, one entry per axis of the patch.
        median_shape: median image size at that spacing in voxels; an entry may end in .5.
        patch_size: in voxels.
        batch_size: patches per batch.
        batch_dice: whether the Dice loss sums over the batch before it takes the ratio.
        normalization: nnU-Net's normalisation scheme of each channel.
        use_mask_for_norm: for each channel, whether only voxels inside the nonzero mask are normalised.
        strides: strides of each encoder stage; those of the first are all 1.
        kernel_sizes: kernel sizes of each encoder stage.
        features_per_stage: feature maps of each encoder stage.
        encoder_blocks: convolutions, or residual blocks, of each encoder stage.
        decoder_blocks: convolutions of each decoder stage; there is one stage fewer than in the encoder.
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
        """Number of encoder stages, including the bottleneck."""
        return len(self.strides)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return _as_json(asdict(self))

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> "Configuration":
        """Read a configuration.

        Args:
            obj: what `to_json` returned.

        Raises:
            UserError: a key is missing, or its value has another form.
        """
        return parse_record("configuration", obj, _configuration)


@dataclass(frozen=True)
class Plan:
    """How a dataset is preprocessed, and the shapes of networks that fit it.

    Attributes:
        dataset_name: such as "Dataset004_Hippocampus".
        rules: name of the rule set that made the plan.
        transpose_forward: file axis of each plan axis.
        transpose_backward: plan axis of each file axis.
        median_spacing: median spacing of the training cases in mm, plan axes.
        median_shape: median size of the cropped training cases at their own spacing in voxels, plan axes.
        intensity: foreground intensities of each channel.
        configurations: the configurations by name.
        decisions: the planner's decisions with the numbers behind them, in order. They are not compared or stored.
        reader: nnU-Net's name of the reader where it changes the images: `REORIENTING_READER`, which turns them to RAS;
            None for all others.
        orientations: in which the training images are stored, such as "RAS", the most frequent first; empty if that is
            not known. They are not compared, and stored in checkpoints only.
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
    reader: str | None = None
    orientations: tuple[str, ...] = field(default=(), compare=False)

    def configuration(self, name: str) -> Configuration:
        """Return a configuration by name.

        Args:
            name: its name.

        Raises:
            UserError: the plan has no configuration of that name.
        """
        if name not in self.configurations:
            raise UserError(
                f"plan.configuration={name}: the plan of {self.dataset_name} has no such configuration. "
                f"Choose one of {', '.join(self.configurations)}."
            )
        return self.configurations[name]

    def to_json(self) -> dict[str, Any]:
        """Return the plan, without its decisions and orientations, as JSON-able values."""
        apart = ("intensity", "configurations", "reader", "orientations", "decisions")
        names = [entry.name for entry in fields(self) if entry.name not in apart]
        return {
            **_as_json({name: getattr(self, name) for name in names}),
            **({} if self.reader is None else {"reader": self.reader}),
            "intensity": [asdict(channel) for channel in self.intensity],
            "configurations": {name: entry.to_json() for name, entry in self.configurations.items()},
        }

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> "Plan":
        """Read a plan.

        Args:
            obj: what `to_json` returned.

        Raises:
            UserError: a key is missing, or its value has another form.
        """
        return parse_record("plan", obj, _plan)


def parse_record(what: str, obj: Any, parse: Callable[[Any], Parsed]) -> Parsed:
    """Parse a record, and turn a missing key or a value of another form into a UserError.

    Args:
        what: what is parsed; the message begins with it.
        obj: the record.
        parse: reads it.

    Raises:
        UserError: `parse` raised a KeyError, TypeError, ValueError or AttributeError.
    """
    try:
        return parse(obj)
    except KeyError as error:
        raise UserError(f"{what}: {error} is missing. Check that it is the right file, and complete.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{what}: a value has an unexpected form ({error}). Check which version wrote it.") from error


def axis3(values: Sequence[int]) -> tuple[int, int, int]:
    """Return three integers as a tuple.

    Args:
        values: three integers, one per axis.

    Raises:
        ValueError: there are not three.
    """
    first, second, third = values
    return int(first), int(second), int(third)


def stages(values: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Return the integers of each stage as tuples.

    Args:
        values: one sequence per stage.
    """
    return tuple(tuple(int(item) for item in entry) for entry in values)


def integers(values: Sequence[int]) -> tuple[int, ...]:
    """Return integers as a tuple.

    Args:
        values: numbers without a fraction.
    """
    return tuple(int(value) for value in values)


def floats(values: Sequence[float]) -> tuple[float, ...]:
    """Return floats as a tuple.

    Args:
        values: numbers.
    """
    return tuple(float(value) for value in values)


def _configuration(obj: Mapping[str, Any]) -> Configuration:
    return Configuration(
        name=str(obj["name"]),
        spacing=floats(obj["spacing"]),
        median_shape=floats(obj["median_shape"]),
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
        median_spacing=floats(obj["median_spacing"]),
        median_shape=floats(obj["median_shape"]),
        intensity=tuple(Intensity(**channel) for channel in obj["intensity"]),
        configurations={str(name): _configuration(entry) for name, entry in obj["configurations"].items()},
        reader=_reader(obj.get("reader")),
    )


def _reader(name: Any) -> str | None:
    if name not in (None, REORIENTING_READER):
        raise ValueError(f"the reader {name!r} is not known")
    return None if name is None else REORIENTING_READER


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value
