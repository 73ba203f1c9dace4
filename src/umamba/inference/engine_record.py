"""What the record of a folder's segmentations says of engines and precisions, and which engine continues them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from umamba.inference.model import Model
from umamba.io import UserError


def begun_engine(
    before: Mapping[str, Any] | None, file: Path, models: Sequence[Model], *, overwrite: bool
) -> str | None:
    """Return the engine of earlier segmentations, which continues them.

    Args:
        before: the record that was written with them; None: there are none.
        file: of that record, for the message.
        models: the networks.
        overwrite: the images that are given are segmented again, so that `before` is of other images.

    Returns:
        torch, openvino, or None: there are none, or both engines made some of them.

    Raises:
        UserError: another engine is asked for.
    """
    if before is None:
        return None
    begun = before.get("engine", "torch")  # earlier versions knew no other
    if begun not in ("torch", "openvino"):
        return None
    other = next((model.engine for model in models if model.engine not in ("auto", begun)), None)
    if other:
        made, again = (
            ("the segmentations of other images", "or another folder")
            if overwrite
            else ("the segmentations that are there already", "another folder, or overwrite=true to make them again")
        )
        raise UserError(
            f"engine={other}: {file} says that engine={begun} made {made}. Give engine={begun} or auto, {again}."
        )
    return str(begun)


def engines_record(before: Mapping[str, Any] | None, models: Sequence[Model]) -> dict[str, Any]:
    """Return the names of engines and precisions for the record of segmentations.

    Args:
        before: the record of earlier segmentations; None: there are none.
        models: the networks, whose engines are settled.

    Returns:
        `engine` and `precision`, each one name, or the list of all that made some of the segmentations.
    """
    engines = {"torch" if model.compiled is None else "openvino" for model in models}
    precisions = {model.precision for model in models}
    if before is None:
        return {"engine": _joined(engines), "precision": _joined(precisions)}
    record = {"engine": _joined(engines | _names(before.get("engine", "torch")))}
    if "precision" in before:  # earlier versions did not record it
        record["precision"] = _joined(precisions | _names(before["precision"]))
    return record


def _names(value: object) -> set[str]:
    return set(map(str, value)) if isinstance(value, list) else {str(value)}


def _joined(names: set[str]) -> str | list[str]:
    return sorted(names) if len(names) > 1 else next(iter(names))
