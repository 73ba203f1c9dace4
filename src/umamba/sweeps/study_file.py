"""Read a study's folder: sweep.yaml holds the question and the runs, published.csv the paper's numbers.

Overrides that all runs share can stand once under `common`, for example a small plan. A run may give a key of `common`
another value.

`comparisons` lists the pairs of methods that the report compares, if a study does not ask about all of them. Fewer
comparisons are corrected less, so that smaller differences are shown; name them before anything is trained.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umamba.io import UserError
from umamba.records.config_file import read_yaml
from umamba.settings.training import Fold
from umamba.settings.wording import shown

_KEYS = ("question", "runs", "folds", "seeds")
_COMMON, _COMPARISONS = "common", "comparisons"


@dataclass(frozen=True)
class StudyFile:
    """Content of sweep.yaml.

    Attributes:
        name: name of the study's folder.
        folder: the folder.
        question: the question that the study answers.
        runs: overrides of each training, as typed after `umamba train`; those that all have in common come first.
        folds: folds of every run, 0 to 4 or all.
        seeds: seeds of every run.
        comparisons: pairs of methods that are compared, named as in the report's tables; none: all pairs are.
    """

    name: str
    folder: Path
    question: str
    runs: tuple[tuple[str, ...], ...]
    folds: tuple[Fold, ...]
    seeds: tuple[int, ...]
    comparisons: tuple[tuple[str, str], ...] = ()

    @property
    def published(self) -> Path | None:
        """Path of published.csv; None if the paper has no such numbers."""
        path = self.folder / "published.csv"
        return path if path.exists() else None


def list_studies(experiments: Path) -> list[str]:
    """Return the names of the studies, which are the folders with a sweep.yaml.

    Args:
        experiments: folder of all studies.
    """
    return sorted(path.parent.name for path in Path(experiments).glob("*/sweep.yaml"))


def is_study(path: str) -> bool:
    """Return whether a text is the path of a study's folder.

    Args:
        path: the text.
    """
    return (Path(path) / "sweep.yaml").is_file()


def read_study(experiments: Path, name: str) -> StudyFile:
    """Read <experiments>/<name>/sweep.yaml, or <name>/sweep.yaml if that does not exist.

    Args:
        experiments: folder of all studies.
        name: name of a study, or the path of its folder.

    Raises:
        UserError: the study does not exist, or its file has a wrong key or value.
    """
    path = Path(experiments) / name / "sweep.yaml"
    if not path.is_file() and is_study(name):
        path = Path(name).resolve() / "sweep.yaml"
    if not path.is_file():
        raise UserError(
            f"study={name}: the file {path} does not exist. Choose one of {', '.join(list_studies(experiments))}."
        )
    content = read_yaml(path)
    if not isinstance(content, Mapping) or set(content) - {_COMMON, _COMPARISONS} != set(_KEYS):
        found = shown(", ".join(map(str, content))) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(
            f"{path}: must have the keys {', '.join(_KEYS)} (and may have {_COMMON}, {_COMPARISONS}), but has {found}."
        )
    common = _overrides(path, content.get(_COMMON, ""))
    return StudyFile(
        name=path.parent.name,
        folder=path.parent,
        question=str(content["question"]),
        runs=tuple((*common, *_overrides(path, line)) for line in _list(path, content, "runs")),
        folds=tuple(_fold(path, fold) for fold in _list(path, content, "folds")),
        seeds=tuple(_seed(path, seed) for seed in _list(path, content, "seeds")),
        comparisons=_pairs(path, content),
    )


def _list(path: Path, content: Mapping[Any, Any], key: str) -> list[Any]:
    value = content[key]
    if not isinstance(value, list) or not value:
        raise UserError(f"{path}: {key} must be a list with at least one entry.")
    return value


def _overrides(path: Path, line: Any) -> tuple[str, ...]:
    try:
        if isinstance(line, str):
            return tuple(shlex.split(line))
        reason = "it is no text"
    except ValueError as error:
        reason = str(error)
    raise UserError(f"{path}: runs: {shown(line)} is no line of overrides ({reason}).")


def _pairs(path: Path, content: Mapping[Any, Any]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of methods; whether the study has these methods, only its composed runs can tell."""
    if _COMPARISONS not in content:
        return ()
    pairs = _list(path, content, _COMPARISONS)
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)):
            raise UserError(f"{path}: {_COMPARISONS}: {shown(pair)} must be two names of methods: [unet, umamba_bot].")
        if pair[0] == pair[1] or sum(set(other) == set(pair) for other in pairs if isinstance(other, list)) > 1:
            raise UserError(f"{path}: {_COMPARISONS}: {shown(pair)} must be two methods, and stand there once.")
    return tuple((first, second) for first, second in pairs)


def _fold(path: Path, fold: Any) -> Fold:
    if fold != "all" and (type(fold) is not int or fold not in range(5)):
        raise UserError(f"{path}: folds: {shown(fold)} must be 0 to 4, or all.")
    return fold


def _seed(path: Path, seed: Any) -> int:
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"{path}: seeds: {shown(seed)} must be an integer from 0 to {2**32 - 1}.")
    return seed
