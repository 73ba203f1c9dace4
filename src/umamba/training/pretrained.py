"""Fine-tuning: weights of another run, or of the official programs, as the start of a new one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.networks.official_keys import official_state_dict

LISTED = 5


def load_pretrained(path: Path, network: nn.Module, build: Callable[[int], nn.Module], labels: LabelSet) -> str:
    """Load weights into a network; the heads stay as they were initialised if the classes are others.

    Args:
        path: a checkpoint of this project, or one of nnU-Net or U-Mamba (`network_weights`).
        network: the new run's.
        build: makes the same network for a number of classes, which tells the heads from the rest.
        labels: the new run's.

    Returns:
        What was loaded, as a sentence.

    Raises:
        UserError: the file is no such checkpoint, or of another architecture, plan or number of channels.
    """
    weights, former = read_weights(path)
    own = network.state_dict()
    with torch.random.fork_rng(devices=[]):
        wider = build(labels.num_classes + 1).state_dict()
    heads = {name for name, tensor in own.items() if wider[name].shape != tensor.shape}
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


def read_weights(path: Path) -> tuple[dict[str, Tensor], LabelSet | None]:
    """Return a checkpoint's weights under this project's names, and its label set if it holds one.

    Raises:
        UserError: the file cannot be read, would run code, or holds no weights of a network.
    """
    try:
        with torch.serialization.safe_globals(_numpy_types()):  # numbers in the logs of official checkpoints
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"pretrained={path}: cannot be loaded ({reason}). Give a checkpoint file.") from None
    content = content if isinstance(content, Mapping) else {}
    if isinstance(content.get("umamba"), Mapping):
        weights = {
            name.removeprefix("network."): tensor
            for name, tensor in content["state_dict"].items()
            if name.startswith("network.")
        }
        return weights, LabelSet.from_json(content["umamba"]["labels"])
    if isinstance(content.get("network_weights"), Mapping):
        return official_state_dict(content["network_weights"]), None
    raise UserError(f"pretrained={path}: holds no weights of this project, nnU-Net or U-Mamba. Give a checkpoint file.")


def _missing(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    ours, theirs = own.keys() - weights.keys(), weights.keys() - own.keys()
    return [*((name, "new network") for name in ours), *((name, "file") for name in theirs)]


def _numpy_types() -> list[Any]:
    scalar = np.float64(0).__reduce__()[0]
    return [scalar, np.dtype, *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64, np.bool_))]
