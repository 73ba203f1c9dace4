"""Read TorchIO's transforms and their arguments from its source, because importing TorchIO takes seconds."""

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from umamba.settings.wording import nearest, shown, wrong_choice

_PLAIN = "its arguments cannot be written as plain values"
_SIZE = "it changes the size of the patch or the axes"
_LABEL = "it changes the labels, and augmentation must not"
# Transforms that cannot augment a patch, each with the reason.
UNFIT: Mapping[str, str] = {
    **dict.fromkeys(("Compose", "OneOf", "Lambda", "MonaiAdapter"), _PLAIN),
    **dict.fromkeys(("ElasticDeformation", "AffineElasticDeformation", "Motion", "To"), _PLAIN),
    **dict.fromkeys(("Crop", "Pad", "CropOrPad", "EnsureShapeMultiple", "Resample", "Resize", "PCA"), _SIZE),
    **dict.fromkeys(("CopyAffine", "ToCanonical", "ToOrientation", "ToReferenceSpace", "Transpose"), _SIZE),
    **dict.fromkeys(("OneHot", "RemapLabels", "RemoveLabels", "SequentialLabels", "LabelTransform"), _LABEL),
    **dict.fromkeys(("Contour", "KeepLargestComponent"), _LABEL),
    **dict.fromkeys(("RandomLabelsToImage", "LabelsToImage"), "it makes another image instead of changing the patch"),
    **dict.fromkeys(
        ("Transform", "FourierTransform", "SpatialTransform", "IntensityTransform"),
        "it is a base class without an effect",
    ),
}
# Arguments that this project sets itself, with the reason.
RESERVED: Mapping[str, str] = {
    **dict.fromkeys(
        ("copy", "include", "exclude", "keys", "keep", "parse_input", "label_keys"),
        "the image and its label are always transformed together",
    ),
    "default_pad_label": "beyond the image there is background",
    "check_shape": "image and label always have the same shape",
}
# Arguments of which only one value is right here, with the reason.
ONLY: Mapping[str, tuple[Any, str]] = {
    "label_interpolation": ("nearest", "another interpolation would invent labels"),
    "center": ("image", "a patch turns about its own centre"),
}
# Arguments that take axes, and those that hold the arguments of another transform.
_AXES = ("axes", "axis")
_NESTED: Mapping[str, str] = {"affine_kwargs": "RandomAffine", "elastic_kwargs": "RandomElasticDeformation"}


@dataclass(frozen=True)
class Signature:
    """The arguments of a transform.

    Attributes:
        names: every argument, those of the base classes included.
        required: the arguments without a default.
    """

    names: tuple[str, ...]
    required: tuple[str, ...]


@cache
def torchio_transforms() -> Mapping[str, Signature]:
    """Return the transforms that the installed TorchIO exports: name -> arguments; empty if it is not installed."""
    spec = importlib.util.find_spec("torchio")
    if spec is None or spec.origin is None:
        return {}
    folder = Path(spec.origin).parent / "transforms"
    classes = {
        node.name: node
        for path in sorted(folder.rglob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    exported = {
        alias.asname or alias.name
        for node in ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return {name: _signature(name, classes) for name in sorted(exported & set(classes))}


def _signature(name: str, classes: Mapping[str, ast.ClassDef]) -> Signature:
    """Return the arguments of a class: its own, and those that **kwargs hands to its bases."""
    node = classes[name]
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    inherited = [_signature(base, classes) for base in bases]
    names = [argument for base in inherited for argument in base.names]
    required = [argument for base in inherited for argument in base.required]
    for function in node.body:
        if isinstance(function, ast.FunctionDef) and function.name == "__init__":
            positional = function.args.args[1:]  # without self
            without = positional[: len(positional) - len(function.args.defaults)]
            keyword = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
            own = [entry.arg for entry in (*positional, *function.args.kwonlyargs)]
            needed = [entry.arg for entry in without] + [entry.arg for entry, value in keyword if value is None]
            handed = function.args.kwarg is not None
            names = own + (names if handed else [])
            required = needed + ([entry for entry in required if entry not in own] if handed else [])
    return Signature(tuple(dict.fromkeys(names)), tuple(dict.fromkeys(required)))


def argument_problems(name: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each mistake that the source of TorchIO shows without running it.

    Args:
        name: the transform.
        arguments: its arguments as plain values.
    """
    key, known = f"augmentation.extra: {name}", torchio_transforms()
    usable = [entry for entry in known if entry not in UNFIT]
    if name in known and name in UNFIT:
        yield f"{key}: cannot be used here, because {UNFIT[name]}."
        return
    if name not in known:
        yield wrong_choice("augmentation.extra.name", name, usable)
        return
    signature = known[name]
    offered = [entry for entry in signature.names if entry not in RESERVED]
    for argument, value in arguments.items():
        if argument in RESERVED:
            yield f"{key}: {argument} cannot be set, because {RESERVED[argument]}."
        elif argument not in signature.names:
            close = nearest(argument, offered)
            hint = f" Did you mean {close}?" if close else ""
            yield f"{key}: TorchIO's transform has no argument {argument}.{hint} Its arguments: {', '.join(offered)}."
        elif argument in _NESTED and isinstance(value, Mapping):
            yield from argument_problems(_NESTED[argument], value)
        elif argument in ONLY and value != ONLY[argument][0]:
            right, reason = ONLY[argument]
            yield f"{key}: {argument}={shown(value)}: must be {right}, because {reason}."
        elif argument in _AXES and any(isinstance(entry, str) for entry in _listed(value)):
            yield (
                f"{key}: {argument}={shown(value)}: give numbers, because patches have no anatomical directions: 0 is "
                "the last axis of the patch (X), 1 the one before (Y), 2 the first (Z)."
            )
    missing = [entry for entry in signature.required if entry not in arguments]
    if missing:
        yield f"{key}: TorchIO's transform also needs {', '.join(missing)}."


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
