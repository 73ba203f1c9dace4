"""Fine-tuning: a new run starts from the weights of another run, of nnU-Net, nnssl or U-Mamba.

nnU-Net's checkpoints include those of TotalSegmentator, whose networks are nnU-Net's.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.labels.case_classes import CaseHeads
from umamba.records.checkpoint import read_case_head, read_weights
from umamba.settings.wording import shown

LISTED = 5


def load_pretrained(
    path: Path,
    network: nn.Module,
    build: Callable[[int], nn.Module],
    labels: LabelSet,
    parts: Literal["all", "fitting"] = "all",
) -> str:
    """Load weights into a network; the segmentation heads keep their initial weights if the classes differ.

    Args:
        path: a checkpoint of this project, of nnU-Net, nnssl or U-Mamba.
        network: the new run's network, which gets the weights.
        build: builds the same network for a number of classes; tensors whose shape depends on it belong to the heads.
        labels: the new run's labels.
        parts: all: the weights besides the heads must fit. fitting: take those that fit by name and shape.

    Returns:
        A sentence that says what was loaded.

    Raises:
        UserError: the file is no such checkpoint, or has another architecture, plan or number of channels; with
            `fitting`: no tensor of it fits.
    """
    stored = read_weights(path)
    weights, own = stored.weights, network.state_dict()
    heads = set(head_axes(own, build, labels.num_classes))
    fits = {name for name in own.keys() & weights.keys() if own[name].shape == weights[name].shape}
    if parts == "all":
        _refuse_unfit(path, own, weights, heads)
    same_classes = not stored.reconstructs and stored.labels in (None, labels) and heads <= fits
    kept = {name: weights[name] for name in own if name in fits and (same_classes or name not in heads)}
    if not kept:
        raise UserError(
            f"pretrained={path}: no tensor of it fits this network by name and shape. Take the architecture of that "
            "checkpoint (architecture=resenc_unet for nnssl's ResEnc-L), and its number of channels."
        )
    network.load_state_dict(kept, strict=False)
    differ = "it was pretrained to reconstruct images" if stored.reconstructs else "the classes differ"
    remark = "with its heads" if same_classes else f"{differ}: {len(heads)} tensors of the heads begin anew"
    said = f"Pretrained: {len(kept)} tensors of {path}, {remark}."
    return said if parts == "all" else f"{said} {_fitting_sentence(own, weights, kept, heads)}"


def _refuse_unfit(path: Path, own: Mapping[str, Tensor], weights: Mapping[str, Tensor], heads: set[str]) -> None:
    """Refuse weights of another network."""
    problems = [f"{name} is only in the {place}" for name, place in _missing(own, weights)]
    for name in own.keys() & weights.keys() - heads:
        if own[name].shape != weights[name].shape:
            problems.append(f"{name}: {tuple(weights[name].shape)} in the file, {tuple(own[name].shape)} here")
    if problems:
        more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise UserError(
            f"pretrained={path}: the weights are of another architecture, plan or number of channels:\n  "
            + "\n  ".join(sorted(problems)[:LISTED])
            + f"{more}\nTake the architecture and plan of that checkpoint (plan.from_file=..., plan.patch_size=...), "
            "or only the tensors that fit: pretrained_parts=fitting."
        )


def _fitting_sentence(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], kept: Mapping[str, Tensor], heads: set[str]
) -> str:
    """Return how much of each part of the network was loaded, and what was not."""
    parts = list(dict.fromkeys(name.split(".")[0] for name in own))
    found = [
        f"{part} {sum(name.split('.')[0] == part for name in kept)} of "
        f"{sum(name.split('.')[0] == part for name in own)}"
        for part in parts
    ]
    anew = [name for name in own if name not in kept and name not in heads]
    unused = [shown(name) for name in weights if name not in own]
    sentences = [f"Tensors of the network that were loaded: {', '.join(found)}."]
    if anew:
        sentences.append(f"These begin anew: {_some(anew)}.")
    if unused:
        sentences.append(f"These of the file have no place here: {_some(unused)}.")
    return " ".join(sentences)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def head_axes(own: Mapping[str, Tensor], build: Callable[[int], nn.Module], num_classes: int) -> dict[str, int]:
    """Return the tensors of a network whose shape depends on the number of classes.

    Args:
        own: the network's state.
        build: builds the same network for a number of classes; torch's generator stays as it is.
        num_classes: classes of the network.

    Returns:
        Name -> axis of the classes.
    """
    with torch.random.fork_rng(devices=[]):
        wider = build(num_classes + 1).state_dict()
    return {
        name: next(axis for axis, size in enumerate(tensor.shape) if wider[name].shape[axis] != size)
        for name, tensor in own.items()
        if wider[name].shape != tensor.shape
    }


def _missing(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    ours, theirs = own.keys() - weights.keys(), weights.keys() - own.keys()
    return [*((name, "new network") for name in ours), *((name, "file") for name in theirs)]


def load_pretrained_head(path: Path, head: nn.Module, heads: CaseHeads) -> str:
    """Load the classification head of a checkpoint that answers the same questions; another one begins anew.

    Args:
        path: the checkpoint that `load_pretrained` read.
        head: the new run's head, which gets the weights.
        heads: the questions of the new run.

    Returns:
        A sentence that says what was loaded.

    Raises:
        UserError: the head's weights do not fit its own record.
    """
    found = read_case_head(path)
    if found is None:
        return "The classification head begins anew, because that network has none."
    former, weights = found
    own = head.state_dict()
    if former.tasks != heads.tasks or any(
        tensor.shape != own[name].shape for name, tensor in weights.items() if name in own
    ):
        return "The classification head begins anew, because that network answers other questions or has other classes."
    if weights.keys() != own.keys():
        raise UserError(f"pretrained={path}: its classification head lacks weights. The file was changed.")
    head.load_state_dict(weights)
    return "The classification head was loaded, too."
