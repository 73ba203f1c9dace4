"""The record that a checkpoint holds beside its weights, and the reader of this project's and official checkpoints.

Only tensors and plain types are read, so that nothing in a file is executed.
"""

import json
import math
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from umamba.io import UserError
from umamba.io.checksums import read_checked
from umamba.io.documents import check_values
from umamba.labels import LabelSet
from umamba.labels.case_classes import CaseHeads
from umamba.networks import official_state_dict
from umamba.planning import Configuration, Plan
from umamba.planning.plan import read_orientations
from umamba.records.official import SAFE_GLOBALS, find_checkpoint, from_official, tensors_of
from umamba.settings import ArchitectureSettings, MaskingSettings, RecipeSettings, key, parse, plain, read_architecture
from umamba.settings.entry_points import is_trusted, module_of
from umamba.settings.validate import read_record
from umamba.settings.wording import shown

FORMAT = 1
NETWORK = "network."  # prefix of the network's weights in a LightningModule
CASE_HEAD = "case_head."  # prefix of the weights of its classification head
_KEY = "umamba"  # entry of a checkpoint that holds its record
_NNSSL = "nnssl_adaptation_plan"  # entry of a checkpoint of nnssl, which pretrains encoders for nnU-Net
_REQUIRED = ("plan", "configuration", "architecture", "labels", "channel_names", "file_ending", "recipe")
_ACCEPTED = (
    "Give a .ckpt file that train.py wrote (checkpoints/last.ckpt or best.ckpt of a run), or the checkpoint_final.pth "
    "of nnU-Net or U-Mamba."
)


@dataclass(frozen=True)
class CheckpointRecord:
    """All that is needed to use the weights of a checkpoint.

    Attributes:
        plan: the plan of the dataset.
        configuration_name: the plan's configuration that was trained.
        architecture: the backbone and its options.
        labels: the label set.
        channel_names: names of the image channels, in their order.
        file_ending: ending of the dataset's files, such as ".nii.gz".
        recipe: how the network was trained; None: by another program.
        pretrained: checkpoint from which the training started, None if from random weights.
        mirror_axes: patch axes that training mirrored; None: unknown (then all count).
        provenance: versions, machine and revision.
        fingerprint_hash: hash of the dataset's content, None if another program trained the network.
        ema_patch_dice: smoothed patch Dice so far, None before the first.
        heads: what the network answers about a whole case; None: it segments only.
        masking: how parts of the images were hidden from a network that was pretrained to reconstruct them, so that it
            segments nothing; None: it was trained to segment.
    """

    plan: Plan
    configuration_name: str
    architecture: ArchitectureSettings
    labels: LabelSet
    channel_names: tuple[str, ...]
    file_ending: str
    recipe: RecipeSettings | None = None
    pretrained: str | None = None
    mirror_axes: tuple[int, ...] | None = key(None, low=0, high=2)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    fingerprint_hash: str | None = None
    ema_patch_dice: float | None = None
    heads: CaseHeads | None = None
    masking: MaskingSettings | None = None

    @property
    def configuration(self) -> Configuration:
        """The plan's configuration that was trained."""
        return self.plan.configuration(self.configuration_name)

    @property
    def num_channels(self) -> int:
        """Channels of an image."""
        return len(self.channel_names)

    @property
    def input_channels(self) -> int:
        """Channels of the network's input: those of an image and, in a cascade, of the previous stage's labels."""
        return self.configuration.input_channels(self.num_channels, self.labels)

    @property
    def output_channels(self) -> int:
        """Channels of the network's output: the logits of the classes or, of a pretraining, the image."""
        return self.labels.num_classes if self.masking is None else self.input_channels

    @property
    def deep_supervision(self) -> bool:
        """Whether training used losses at every decoder stage, which decides the heads of some networks."""
        return self.recipe is None or self.recipe.deep_supervision

    def to_json(self) -> dict[str, Any]:
        """Return the record in types that JSON holds and a safe loader of checkpoints accepts."""
        content = {
            "format": FORMAT,
            **self.identity(),
            "file_ending": self.file_ending,
            "orientations": list(self.plan.orientations),
            "recipe": {} if self.recipe is None else plain(self.recipe),
            "mirror_axes": self.mirror_axes,
            "provenance": dict(self.provenance),
            "scores": {"ema_patch_dice": self.ema_patch_dice},
            **({} if self.heads is None else {"heads": self.heads.to_json()}),
        }
        return dict(json.loads(json.dumps(content)))

    def identity(self) -> dict[str, Any]:
        """Return what the weights depend on and a continued run must not change."""
        return {
            "architecture": plain(self.architecture),
            "plan": self.plan.to_json(),
            "configuration": self.configuration_name,
            "labels": self.labels.to_json(),
            "channel_names": list(self.channel_names),
            "fingerprint_hash": self.fingerprint_hash,
            "pretrained": self.pretrained,
            **({} if self.masking is None else {"masking": plain(self.masking)}),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "CheckpointRecord":
        """Read what `to_json` returned, or an earlier version of this project wrote.

        Args:
            content: plain values.

        Raises:
            UserError: a key is missing, or a value is not possible.
        """
        if content.get("format") != FORMAT:
            raise UserError(
                f"has checkpoint format {shown(content.get('format'))}, this version reads {FORMAT}. Use the version "
                "of this project that wrote it."
            )
        missing = [name for name in _REQUIRED if name not in content]
        if missing:
            raise UserError(f"the checkpoint lacks {', '.join(missing)}.")
        found = read_record(
            cls,
            {
                **{name: value for name, value in content.items() if name not in ("heads", "masking")},
                "plan": replace(
                    Plan.from_json(content["plan"]), orientations=read_orientations(content.get("orientations", ()))
                ),
                "configuration_name": content["configuration"],
                "architecture": _architecture(content["architecture"]),
                "labels": LabelSet.from_json(content["labels"]),
                "recipe": parse(RecipeSettings, content["recipe"] or {}),
                "provenance": content.get("provenance") or {},
                "ema_patch_dice": _patch_dice(content.get("scores") or {}),
                **_heads(content),
                **_masking(content),
            },
        )
        found.check_fits()
        return found if content["recipe"] else replace(found, recipe=None)

    def check_fits(self) -> None:
        """Refuse a record whose parts do not fit each other.

        Raises:
            UserError: the plan lacks the configuration, or the channels or mirrored axes are others than the plan's.
        """
        configuration, count = self.configuration, self.num_channels
        if count != len(configuration.normalization):
            raise UserError(
                f"channel_names: has {count} entries, but configurations.{self.configuration_name} of the plan has "
                f"{len(configuration.normalization)} channels."
            )
        axes = self.mirror_axes or ()
        if len(set(axes)) != len(axes) or any(axis >= configuration.dim for axis in axes):
            raise UserError(f"mirror_axes={list(axes)}: must be different axes of 0 to {configuration.dim - 1}.")


@dataclass(frozen=True)
class _Scores:
    ema_patch_dice: float | None = None


def _patch_dice(scores: Any) -> float | None:
    """Return the smoothed patch Dice; None also where it is NaN, because training diverged."""
    value = scores.get("ema_patch_dice") if isinstance(scores, Mapping) else None
    if isinstance(value, float) and math.isnan(value):
        return None
    return read_record(_Scores, scores, "scores").ema_patch_dice


def _architecture(values: Any) -> ArchitectureSettings:
    """Return the backbone of a record."""
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise UserError(f"architecture={shown(values)}: must be an object with a name.")
    return read_architecture(values)


def _heads(content: Mapping[str, Any]) -> dict[str, CaseHeads]:
    """Return the entry `heads` of a record that has one."""
    return {} if content.get("heads") is None else {"heads": CaseHeads.from_json(content["heads"])}


def _masking(content: Mapping[str, Any]) -> dict[str, MaskingSettings]:
    """Return the entry `masking` of a record that has one."""
    return {} if content.get("masking") is None else {"masking": parse(MaskingSettings, content["masking"])}


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        path: the file.
        record: how the weights are used.
        weights: of the network, on the CPU.
        head_weights: of the classification head; empty: there is none.
    """

    path: Path
    record: CheckpointRecord
    weights: Mapping[str, Tensor]
    head_weights: Mapping[str, Tensor] = field(default_factory=dict)


def read_checkpoint(path: Path, trust: str | Sequence[str] | None = ()) -> Checkpoint:
    """Read a checkpoint of a run, of nnU-Net or of U-Mamba, without executing anything in it.

    Args:
        path: the file, or a results folder of nnU-Net or U-Mamba that holds one.
        trust: packages whose functions may build the network; None: any, because the caller builds none.

    Raises:
        UserError: the file is missing, damaged, holds anything but tensors and plain types, or is no checkpoint of this
            project, of this version of it, or of nnU-Net or U-Mamba; or its network was pretrained only, or is built by
            code that is neither this project's nor trusted.
    """
    path = find_checkpoint(path)
    content = load_safely(path)
    if "network_weights" in content:
        values, weights = from_official(path, content)
        try:
            return Checkpoint(path, CheckpointRecord.from_json({"format": FORMAT, **values}), weights)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    record = _record(path, content)
    if record.masking is not None:
        raise UserError(
            f"{path}: was pretrained to reconstruct images, and segments nothing yet. Fine-tune it first: umamba train "
            f"pretrained={path} ..."
        )
    if trust is not None and not is_trusted(record.architecture.name, trust):
        package = module_of(record.architecture.name).split(".")[0]
        raise UserError(
            f"{path}: its network is built by {record.architecture.name}, which is not part of this project. A file "
            f"must not choose which code runs, so nothing was imported. If you trust the package {package} that is "
            f"installed here, add trust={package}."
        )
    tensors = tensors_of(path, content["state_dict"])
    return Checkpoint(path, record, network_weights(tensors), case_head_weights(tensors))


def _record(path: Path, content: Mapping[str, Any]) -> CheckpointRecord:
    """Return the record in the content of a checkpoint of this project."""
    if not isinstance(content.get(_KEY), Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise UserError(f"{path}: holds weights, but not the plan and labels to use them with. {_ACCEPTED}")
    check_values(content[_KEY], str(path), nan=True)
    try:
        return CheckpointRecord.from_json(content[_KEY])
    except UserError as error:
        raise UserError(f"{path}: {error} {_ACCEPTED}") from None


def network_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's weights out of the state of a LightningModule.

    Args:
        state_dict: of the module, where the names of the network's weights begin with `NETWORK`.
    """
    return {name.removeprefix(NETWORK): value for name, value in state_dict.items() if name.startswith(NETWORK)}


def case_head_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the classification head out of the state of a LightningModule; empty: there is none.

    Args:
        state_dict: of the module, where the names of the head's weights begin with `CASE_HEAD`.
    """
    return {name.removeprefix(CASE_HEAD): value for name, value in state_dict.items() if name.startswith(CASE_HEAD)}


def read_case_head(path: Path) -> tuple[CaseHeads, dict[str, Tensor]] | None:
    """Return the classification head of a checkpoint and its weights; None: it has no head.

    Args:
        path: a checkpoint that `read_weights` reads.

    Raises:
        UserError: the record of the head is damaged.
    """
    content = load_safely(find_checkpoint(path))
    record = content.get(_KEY)
    if not isinstance(record, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        return None
    try:
        heads = _heads(record).get("heads")
    except UserError as error:
        raise UserError(f"{path}: {error} {_ACCEPTED}") from None
    return None if heads is None else (heads, case_head_weights(tensors_of(path, content["state_dict"])))


@dataclass(frozen=True)
class StoredWeights:
    """What fine-tuning needs of a checkpoint.

    Attributes:
        weights: of the network, under this project's names.
        labels: what its heads mean; None: the file does not say so.
        reconstructs: whether its heads give the image, because it was pretrained only.
    """

    weights: Mapping[str, Tensor]
    labels: LabelSet | None = None
    reconstructs: bool = False


def read_weights(path: Path) -> StoredWeights:
    """Return a checkpoint's weights, and what its heads mean if it says so.

    Fine-tuning needs no more, so that official weights without plans.json and dataset.json are accepted. Those of nnssl
    have nnU-Net's names beside an `nnssl_adaptation_plan`, and heads that give the image.

    Raises:
        UserError: as `read_checkpoint`, or the file holds no weights of a network.
    """
    content = load_safely(find_checkpoint(path))
    record, official = content.get(_KEY), content.get("network_weights")
    if isinstance(record, Mapping) and isinstance(content.get("state_dict"), Mapping):
        check_values(record, str(path), nan=True)
        try:
            labels = LabelSet.from_json(record.get("labels"))  # type: ignore[arg-type]
        except UserError as error:
            raise UserError(f"{path}: {error} {_ACCEPTED}") from None
        weights = network_weights(tensors_of(path, content["state_dict"]))
        return StoredWeights(weights, labels, record.get("masking") is not None)
    if isinstance(official, Mapping):
        return StoredWeights(official_state_dict(tensors_of(path, official)), None, _NNSSL in content)
    raise UserError(f"{path}: holds no weights of this project, nnU-Net or U-Mamba. {_ACCEPTED}")


def store_record(checkpoint: dict[str, Any], record: CheckpointRecord) -> None:
    """Put a record into the content of a checkpoint before it is saved.

    Args:
        checkpoint: what Lightning saves; it is changed.
        record: the record.
    """
    checkpoint[_KEY] = record.to_json()


def stored_patch_dice(checkpoint: Mapping[str, Any]) -> float | None:
    """Return the smoothed patch Dice that the content of a checkpoint holds; None: before the first one.

    Args:
        checkpoint: what Lightning loaded.
    """
    value = checkpoint[_KEY]["scores"]["ema_patch_dice"]
    return None if value is None else float(value)


def load_safely(path: Path) -> dict[str, Any]:
    """Return the content of a file that torch.save wrote; tensors and plain types only.

    Args:
        path: the file.

    Returns:
        The content, its tensors on the CPU.

    Raises:
        UserError: the file is missing, damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. {_ACCEPTED}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(SAFE_GLOBALS):
            # torch warns about old pickle protocols, but such files are refused below or load without loss.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            content = read_checked(path, lambda: torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{path}: not loaded, because it is no checkpoint or holds more than weights and plain values, which could "
            f"run foreign code ({reason}). {_ACCEPTED}"
        ) from None
    except UserError:
        raise
    except Exception as error:  # torch raises errors of many kinds for a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path}: cannot be read as a checkpoint, it is damaged or no checkpoint ({reason}). {_ACCEPTED}"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds weights, but not the plan and labels to use them with. {_ACCEPTED}")
    return content
