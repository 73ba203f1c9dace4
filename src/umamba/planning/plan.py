"""The plan: all that later steps know about the geometry of a dataset and the shape of its networks.

The content follows nnU-Net's plans file. Axes are transposed so that the axis of lowest resolution comes first.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, TypeVar

from umamba.datasets import REORIENTING_READER
from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.planning.consistency import check_configuration_fits, check_plan_fits
from umamba.settings import key
from umamba.settings.validate import read_record
from umamba.settings.wording import shown

Parsed = TypeVar("Parsed")
# Limits of what a file may hold, far beyond all images and networks that exist.
MOST_VOXELS = 1_000_000  # along an axis of an image
MOST_MM = 1e6
LEAST_MM = 1e-6  # a nanometre
CASCADE: Final = "3d_cascade_fullres"  # full resolution again, with the labels of LOWRES as further channels
LOWRES: Final = "3d_lowres"
FULLRES: Final = "3d_fullres"
ONLY_2D = "only 2d"  # begins the decision against all others
FORCED = f"train one before: plan.configuration={LOWRES} plan.spacing=[Z,Y,X] has it for any dataset"
_INTENSITY = 1e30  # float32 holds its square roots, products and differences


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

    mean: float = key(low=-_INTENSITY, high=_INTENSITY)
    median: float = key(low=-_INTENSITY, high=_INTENSITY)
    std: float = key(low=0, high=_INTENSITY)
    min: float = key(low=-_INTENSITY, high=_INTENSITY)
    max: float = key(low=-_INTENSITY, high=_INTENSITY)
    percentile_00_5: float = key(low=-_INTENSITY, high=_INTENSITY)
    percentile_99_5: float = key(low=-_INTENSITY, high=_INTENSITY)


@dataclass(frozen=True)
class Configuration:
    """One way to train on a dataset: a resolution, a patch size and the shape of a network. Axes are plan axes.

    Attributes:
        name: "2d", "3d_fullres", "3d_lowres" or "3d_cascade_fullres".
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
        previous_stage: the configuration whose labels are further channels of the network's input; None: no cascade.
    """

    name: str
    spacing: tuple[float, ...] = key(above=LEAST_MM, high=MOST_MM, lengths=(2, 3))
    median_shape: tuple[float, ...] = key(above=0, high=MOST_VOXELS, lengths=(2, 3))
    patch_size: tuple[int, ...] = key(low=1, high=16384, lengths=(2, 3))
    batch_size: int = key(low=1, high=1_000_000)
    batch_dice: bool = key()
    normalization: tuple[str, ...] = key()
    use_mask_for_norm: tuple[bool, ...] = key()
    strides: tuple[tuple[int, ...], ...] = key(low=1, high=1024)
    kernel_sizes: tuple[tuple[int, ...], ...] = key(low=1, high=63)
    features_per_stage: tuple[int, ...] = key(low=1, high=16384)
    encoder_blocks: tuple[int, ...] = key(low=1, high=64)
    decoder_blocks: tuple[int, ...] = key(low=1, high=64)
    residual_encoder: bool = key()
    previous_stage: str | None = None

    @property
    def dim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.patch_size)

    @property
    def num_stages(self) -> int:
        """Number of encoder stages, including the bottleneck."""
        return len(self.strides)

    def input_channels(self, image_channels: int, labels: LabelSet) -> int:
        """Return the channels of the network's input: those of the image and, in a cascade, one for each label value.

        Args:
            image_channels: channels of an image.
            labels: the label set; regions do not count, but the values that they are made of.
        """
        return image_channels + (0 if self.previous_stage is None else len(labels.foreground))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-able values; `previous_stage` only where there is one."""
        content: dict[str, Any] = _as_json(asdict(self))
        if self.previous_stage is None:
            del content["previous_stage"]
        return content

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> "Configuration":
        """Read a configuration.

        Args:
            obj: what `to_json` returned.

        Raises:
            UserError: a key is missing, or a value has another type, is outside its limits, or fits no other value.
        """
        return read_configuration(obj, "configuration")


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
        configurations: the configurations by name. That of the cascade is only among them where it is not 3d_fullres
            with the labels of 3d_lowres (see `configuration`).
        decisions: the planner's decisions with the numbers behind them, in order. They are not compared or stored.
        reader: nnU-Net's name of the reader where it changes the images: `REORIENTING_READER`, which turns them to RAS;
            None for all others.
        orientations: in which the training images are stored, such as "RAS", the most frequent first; empty if that is
            not known. They are not compared, and stored in checkpoints only.
    """

    dataset_name: str
    rules: str
    transpose_forward: tuple[int, int, int] = key(low=0, high=2)
    transpose_backward: tuple[int, int, int] = key(low=0, high=2)
    median_spacing: tuple[float, ...] = key(above=LEAST_MM, high=MOST_MM, lengths=(3,))
    median_shape: tuple[float, ...] = key(above=0, high=MOST_VOXELS, lengths=(3,))
    intensity: tuple[Intensity, ...] = key()
    configurations: Mapping[str, Configuration] = key()
    decisions: tuple[str, ...] = field(default=(), compare=False, repr=False)
    reader: str | None = None
    orientations: tuple[str, ...] = field(default=(), compare=False)

    def configuration(self, name: str) -> Configuration:
        """Return a configuration by name.

        A plan with 3d_lowres also has 3d_cascade_fullres, which is 3d_fullres if the plan says nothing else (nnU-Net:
        `inherits_from`).

        Args:
            name: its name.

        Raises:
            UserError: the plan has no configuration of that name.
        """
        if name in self.configurations:
            return self.configurations[name]
        if name in self.names:
            return replace(self.configurations[FULLRES], name=CASCADE, previous_stage=LOWRES)
        without = f", because it has no {LOWRES} ({FORCED})" if name == CASCADE else ""
        decided = [text for text in self.decisions if text.startswith((f"{name}: none", f"{name}: dropped", ONLY_2D))]
        raise UserError(
            f"plan.configuration={name}: the plan of {self.dataset_name} has no such configuration{without}. "
            f"Choose one of {', '.join(self.names)}." + "".join(f" ({text})" for text in decided)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all configurations."""
        own = tuple(self.configurations)
        return (*own, CASCADE) if CASCADE not in own and {LOWRES, FULLRES} <= set(own) else own

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
            UserError: a key is missing, or a value has another type, is outside its limits, or fits no other value.
        """
        return parse_record("plan", obj, _plan)


def parse_record(what: str, obj: Any, parse: Callable[[Any], Parsed]) -> Parsed:
    """Parse a record, and name its file or kind in the message about a wrong value.

    Args:
        what: what is parsed; the message begins with it.
        obj: the record.
        parse: reads it.

    Raises:
        UserError: the record is no object, a key is missing, or `parse` refused a value.
    """
    if not isinstance(obj, Mapping):
        raise UserError(f"{what}: must be a JSON object. Check that it is the right file, and complete.")
    try:
        return parse(obj)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
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


def read_configuration(obj: Mapping[str, Any], section: str) -> Configuration:
    """Read a configuration from a file.

    Args:
        obj: its fields.
        section: dotted name in the file, for messages.

    Raises:
        UserError: a field is missing, or a value has another type, is outside its limits, or fits no other value.
    """
    configuration = read_record(Configuration, obj, section)
    check_configuration_fits(configuration, section)
    return configuration


def read_plan(obj: Mapping[str, Any]) -> Plan:
    """Read a plan from a file.

    Args:
        obj: its fields; intensities and configurations are records already.

    Raises:
        UserError: a field is missing, or a value has another type, is outside its limits, or fits no other value.
    """
    apart = ("decisions", "orientations")
    plan = read_record(Plan, {name: value for name, value in obj.items() if name not in apart})
    check_plan_fits(plan)
    return plan


@dataclass(frozen=True)
class _Orientations:
    orientations: tuple[str, ...]


def read_orientations(values: Any) -> tuple[str, ...]:
    """Read in which orientations the training images of a plan or fingerprint are stored.

    Args:
        values: names such as "RAS".

    Raises:
        UserError: it is no list of such names.
    """
    found = read_record(_Orientations, {"orientations": values}).orientations
    wrong = next((name for name in found if not re.fullmatch("[LRAPIS]{3}", name)), None)
    if wrong is not None:
        raise UserError(f"orientations: {shown(wrong)} is no orientation like RAS.")
    return found


def entries_of(value: Any, name: str) -> Mapping[str, Any]:
    """Return an entry that must be an object.

    Args:
        value: the entry.
        name: its dotted name, for the message.

    Raises:
        UserError: it is no object, or empty.
    """
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{name}={shown(value)}: must be an object with at least one entry.")
    return value


def _plan(obj: Mapping[str, Any]) -> Plan:
    channels = obj["intensity"]
    if not isinstance(channels, Sequence) or isinstance(channels, str):
        raise UserError(f"intensity={shown(channels)}: must be a list with an entry for each channel.")
    return read_plan(
        {
            **entries_of(obj, "it"),
            "intensity": tuple(
                read_record(Intensity, channel, f"intensity[{index}]") for index, channel in enumerate(channels)
            ),
            "configurations": {
                str(name): read_configuration(entry, f"configurations.{shown(name)}")
                for name, entry in entries_of(obj["configurations"], "configurations").items()
            },
            "reader": _reader(obj.get("reader")),
        }
    )


def _reader(name: Any) -> str | None:
    if name not in (None, REORIENTING_READER):
        raise UserError(f"reader={shown(name)}: is not known. It can only be {REORIENTING_READER}.")
    return None if name is None else REORIENTING_READER


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value
