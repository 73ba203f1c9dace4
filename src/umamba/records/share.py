"""A checkpoint to give away: the network's weights and what is needed to use them, and nothing about who made them.

A run's own checkpoint also holds optimiser, loops and callbacks, and the path of the weights that it began from. Those
of early versions name machine, user and command, too.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from umamba.io import UserError, atomic_path
from umamba.records.checkpoint import CASE_HEAD, NETWORK, Checkpoint, read_checkpoint, store_record
from umamba.records.torch_file import write_torch

_PLAIN = re.compile(r"[\w.+-]{1,60}")  # a version, a revision, the name of a trainer
_SYSTEM = re.compile(r"\w{1,20} \w{1,20}")  # such as "Linux x86_64"; early versions added the kernel
_PATH = re.compile(r"[/~\\]|[A-Za-z]:[/\\]|file:")
_FINE_TUNED = "another checkpoint"


def share_checkpoint(checkpoint: Path, output: Path, half: bool = False) -> Path:
    """Write a checkpoint that predicts the same and can be fine-tuned, but holds weights and record only.

    Kept are weights, plan, labels, architecture, recipe, versions and revision. Left out are optimiser, loops,
    callbacks, the path of the weights that training began from, and everything else. The same checkpoint gives the
    same bytes.

    Args:
        checkpoint: of a run, of nnU-Net or of U-Mamba.
        output: the new file.
        half: store weights as float16: half the size, and other bits of the weights.

    Returns:
        `output`.

    Raises:
        UserError: the checkpoint cannot be read, names a path that is needed to build the network, or the output exists
            already.
    """
    read, output = read_checkpoint(checkpoint, trust=None), Path(output)
    if output.exists():
        raise UserError(f"{output}: exists already. Delete it, or give another output.")
    content = _content(read, half)
    for name, text in _texts("", content["umamba"]):
        if _PATH.match(text):
            raise UserError(
                f"{read.path}: its entry {name} is the path {text}, which says where it was made, and a shared "
                "checkpoint must not. Train with a name instead of a path there."
            )
    with atomic_path(output) as temporary:
        write_torch(content, temporary)
    return output


def _content(read: Checkpoint, half: bool) -> dict[str, Any]:
    """Return the content of the new file; each tensor is a copy, because torch.save writes all that a view hides."""
    record = replace(
        read.record,
        pretrained=None if read.record.pretrained is None else _FINE_TUNED,
        provenance=_provenance(read.record.provenance),
    )
    weights = {
        prefix + name: value.detach().clone(memory_format=torch.contiguous_format)
        for prefix, tensors in ((NETWORK, read.weights), (CASE_HEAD, read.head_weights))
        for name, value in tensors.items()
    }
    if half:
        weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    content: dict[str, Any] = {"state_dict": weights}
    store_record(content, record)
    # The pickle of equal texts depends on whether they are one object; JSON makes all of them anew.
    content["umamba"] = json.loads(json.dumps(content["umamba"]))
    return content


def _provenance(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that say with what a network was trained; nothing that says where or by whom."""
    kept: dict[str, Any] = {
        name: facts[name]
        for name in ("umamba", "python", "torch", "trainer")
        if isinstance(facts.get(name), str) and _PLAIN.fullmatch(facts[name])
    }
    if isinstance(facts.get("system"), str) and _SYSTEM.fullmatch(facts["system"]):
        kept["system"] = facts["system"]
    if isinstance(facts.get("epochs"), int):
        kept["epochs"] = facts["epochs"]
    packages = facts.get("packages")
    if isinstance(packages, Mapping):
        kept["packages"] = {
            str(name): version
            for name, version in packages.items()
            if version is None or (isinstance(version, str) and _PLAIN.fullmatch(version))
        }
    git = facts.get("git")
    if isinstance(git, Mapping) and re.fullmatch(r"[0-9a-f]{7,64}", str(git.get("revision"))):
        kept["git"] = {"revision": git["revision"], "dirty": bool(git.get("dirty"))}
    return kept


def _texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield each text inside a JSON-able value with its dotted name; keys count as texts, too."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield f"{name}.{key}".strip("."), str(key)
            yield from _texts(f"{name}.{key}".strip("."), entry)
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _texts(f"{name}[{index}]", entry)
    elif isinstance(value, str):
        yield name, value
