"""Fine-tuning: a new run starts from the weights of another run, of nnU-Net or of U-Mamba."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.labels.case_classes import CaseHeads
from umamba.records.checkpoint import read_case_head, read_weights

LISTED = 5


def load_pretrained(path: Path, network: nn.Module, build: Callable[[int], nn.Module], labels: LabelSet) -> str:
    """Load weights into a network; the segmentation heads keep their initial weights if the classes differ.

    Args:
        path: a checkpoint of this project, of nnU-Net or of U-Mamba.
        network: the new run's network, which gets the weights.
        build: builds the same network for a number of classes; tensors whose shape depends on it belong to the heads.
        labels: the new run's labels.

    Returns:
        A sentence that says what was loaded.

    Raises:
        UserError: the file is no such checkpoint, or has another architecture, plan or number of channels.
    """
    weights, former = read_weights(path)
    own = network.state_dict()
    heads = set(head_axes(own, build, labels.num_classes))
    problems = [f"{name} is only in the {place}" for name, place in _missing(own, weights)]
    for name in own.keys() & weights.keys() - heads:
        if own[name].shape != weights[name].shape:
            problems.append(f"{name}: {tuple(weights[name].shape)} in the file, {tuple(own[name].shape)} here")
    if problems:
        more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise UserError(
            f"pretrained={path}: the weights are of another architecture, plan or number of channels:\n  "
            + "\n  ".join(sorted(problems)[:LISTED])
            + f"{more}\nTake the architecture and plan of that checkpoint (plan.from_file=..., plan.patch_size=...)."
        )
    same_classes = former in (None, labels) and all(own[name].shape == weights[name].shape for name in heads)
    kept = {name: tensor for name, tensor in weights.items() if same_classes or name not in heads}
    network.load_state_dict(kept, strict=False)
    remark = "with its heads" if same_classes else f"the classes differ: {len(heads)} tensors of the heads begin anew"
    return f"Pretrained: {len(kept)} tensors of {path}, {remark}."


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
