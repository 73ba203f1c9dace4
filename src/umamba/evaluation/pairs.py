"""Which files of predictions, references and images belong to one case."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from umamba.evaluation.rules import Rules
from umamba.io import UserError, supported_endings

_CELL_SUFFIX = "_label"


def find_pairs(predictions: Path, truth: Path, rules: Rules) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Return the files (prediction, reference) of each case, and a message for each missing prediction.

    Every reference needs a prediction. With strict_official only the predictions decide which cases are scored, as in
    the official scripts. Predictions without a reference are ignored. Names also match if only their Unicode form
    differs (NFC, NFD).

    Args:
        predictions: folder of segmentations.
        truth: folder of references.
        rules: protocol and strict_official are read.

    Raises:
        UserError: a folder does not exist, contains no label map, or contains a case twice.
    """
    predicted, true = files_of(predictions, "predictions"), files_of(truth, "truth")
    if rules.of_cells:
        true = {case.removesuffix(_CELL_SUFFIX): path for case, path in true.items()}
    predicted = renamed(predicted, true)
    pairs = {case: (predicted[case], path) for case, path in true.items() if case in predicted}
    missing = [] if rules.strict_official else sorted(true.keys() - predicted.keys())
    return pairs, [
        f"{predictions}: there is no segmentation of {case} ({true[case].name} in {truth})." for case in missing
    ]


def renamed(found: Mapping[str, Path], wanted: Iterable[str]) -> dict[str, Path]:
    """Return files under the wanted names, where a name differs only by its Unicode form, as on macOS (NFD, NFC).

    Args:
        found: name -> file.
        wanted: the names.
    """
    forms = Counter(map(_composed, wanted))
    exact = set(wanted)
    by_form = {_composed(name): name for name in wanted}
    names = {
        name: by_form[_composed(name)]
        for name in found
        if name not in exact and forms[_composed(name)] == 1 and by_form[_composed(name)] not in found
    }
    return {names.get(name, name): path for name, path in found.items()}


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def files_of(folder: Path, key: str) -> dict[str, Path]:
    """Return the images or label maps of a folder by their names without ending.

    Args:
        folder: the folder.
        key: predictions, truth or images, for the message.

    Raises:
        UserError: the folder does not exist, contains no such file, or a case twice.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: there is no such folder. Check the path.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in supported_endings() if path.name.lower().endswith(ending)), None)
        if ending and path.is_file() and not path.name.startswith("."):
            case = path.name[: -len(ending)]
            if case in found and key != "images":
                raise UserError(f"{key}={folder}: {found[case].name} and {path.name} are one case. Remove one of them.")
            found[case] = path
    if not found:
        what = "image" if key == "images" else "label map"
        raise UserError(f"{key}={folder}: contains no {what} ({', '.join(supported_endings())}). Check the path.")
    return found
