"""Coded names of labels for DICOM: SNOMED CT for organs of the benchmarks, a file of the user's, else a private scheme.

The values are those of DICOM's context groups (part 16, CID 7150 and 7151); a test compares them with pydicom's.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umamba.io import UserError, read_json
from umamba.labels.label_set import LabelSet
from umamba.settings.wording import shown, unknown_name

PRIVATE = "99UMAMBA"  # designators of private schemes begin with 99
_LONGEST_VALUE, _LONGEST_MEANING = 16, 64  # characters of a code's value and meaning in DICOM


@dataclass(frozen=True)
class Code:
    """A coded concept.

    Attributes:
        value: the code, at most 16 characters.
        scheme: designator of the coding scheme, such as SCT for SNOMED CT.
        meaning: in words, at most 64 characters.
    """

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class LabelCode:
    """The coded name of a label.

    Attributes:
        category: what kind of thing it is.
        kind: what it is.
        modifier: its side or part; None: none.
    """

    category: Code
    kind: Code
    modifier: Code | None = None


_ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_UNKNOWN = Code("SEGMENT", PRIVATE, "Segment without a known category")
_MODIFIERS = {
    "left": Code("7771000", "SCT", "Left"),
    "right": Code("24028007", "SCT", "Right"),
    "anterior": Code("255549009", "SCT", "Anterior"),
    "posterior": Code("255551008", "SCT", "Posterior"),
}
_ORGANS = {
    "liver": Code("10200004", "SCT", "Liver"),
    "kidney": Code("64033007", "SCT", "Kidney"),
    "spleen": Code("78961009", "SCT", "Spleen"),
    "pancreas": Code("15776009", "SCT", "Pancreas"),
    "aorta": Code("15825003", "SCT", "Aorta"),
    "inferior vena cava": Code("64131007", "SCT", "Inferior vena cava"),
    "adrenal gland": Code("23451007", "SCT", "Adrenal gland"),
    "gallbladder": Code("28231008", "SCT", "Gallbladder"),
    "esophagus": Code("32849002", "SCT", "Esophagus"),
    "stomach": Code("69695003", "SCT", "Stomach"),
    "duodenum": Code("38848004", "SCT", "Duodenum"),
    "bladder": Code("89837001", "SCT", "Bladder"),
    "prostate": Code("41216001", "SCT", "Prostate"),
    "uterus": Code("35039007", "SCT", "Uterus"),
    "hippocampus": Code("5366008", "SCT", "Hippocampus"),
    "heart": Code("80891009", "SCT", "Heart"),
    "lung": Code("39607008", "SCT", "Lung"),
    "brain": Code("12738006", "SCT", "Brain"),
    "portal vein": Code("32764006", "SCT", "Portal vein"),
    "splenic vein": Code("35819009", "SCT", "Splenic vein"),
    "colon": Code("71854001", "SCT", "Colon"),
    "left atrium": Code("82471001", "SCT", "Left atrium"),
    "left ventricle": Code("87878005", "SCT", "Left ventricle"),
    "right ventricle": Code("53085002", "SCT", "Right ventricle"),
}
_FINDINGS = {
    "tumor": Code("108369006", "SCT", "Neoplasm"),
    "edema": Code("79654002", "SCT", "Edema"),
    "necrosis": Code("6574001", "SCT", "Necrosis"),
    "cyst": Code("367643001", "SCT", "Cyst"),
    "lesion": Code("52988006", "SCT", "Lesion"),
}
# Names of the benchmarks' files that are none of those above.
_OTHER_NAMES = {
    "ivc": "inferior vena cava",
    "postcava": "inferior vena cava",
    "rag": "right adrenal gland",
    "lag": "left adrenal gland",
    "oesophagus": "esophagus",
    "gall bladder": "gallbladder",
    "urinary bladder": "bladder",
    "tumour": "tumor",
    "oedema": "edema",
    "anterior": "anterior hippocampus",
    "posterior": "posterior hippocampus",
}
_HIPPOCAMPUS = {"anterior", "posterior"}  # all labels of that data set; alone they mean nothing


def label_codes(labels: LabelSet, file: Path | None = None) -> tuple[LabelCode, ...]:
    """Return the coded name of each label.

    Args:
        labels: the label set.
        file: JSON, label -> {"value", "scheme", "meaning", "laterality"?}; or a dataset.json with this as `codes`. It
            goes before the known names. None: none.

    Raises:
        UserError: the file holds something else, or names that are no labels.

    >>> [code.kind.meaning for code in label_codes(LabelSet(("right_kidney", "blob"), ((1,), (2,))))]
    ['Kidney', 'blob']
    """
    given = {} if file is None else _read(file, labels)
    hippocampus = {name.strip().lower() for name in labels.names} == _HIPPOCAMPUS
    return tuple(given.get(name) or _known(name, hippocampus) or private_code(name) for name in labels.names)


def private_code(name: str) -> LabelCode:
    """Return the code of a name that no public scheme is known for: the same name has the same code.

    Args:
        name: of the label.
    """
    value = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:_LONGEST_VALUE].upper()
    return LabelCode(_UNKNOWN, Code(value, PRIVATE, _meaning(name)))


def _known(name: str, hippocampus: bool) -> LabelCode | None:
    """Return the code of a known name; `hippocampus`: whether the labels are those of the hippocampus data set."""
    words = " ".join(re.sub(r"[\W_]+", " ", name).lower().split())
    if words not in _HIPPOCAMPUS or hippocampus:
        words = _OTHER_NAMES.get(words, words)
    if words in _ORGANS:
        return LabelCode(_ANATOMY, _ORGANS[words])
    if words in _FINDINGS:
        return LabelCode(_ABNORMAL, _FINDINGS[words])
    for side, modifier in _MODIFIERS.items():
        rest = words.split()
        if side in rest:
            rest.remove(side)
            if " ".join(rest) in _ORGANS:
                return LabelCode(_ANATOMY, _ORGANS[" ".join(rest)], modifier)
    return None


def _read(file: Path, labels: LabelSet) -> dict[str, LabelCode]:
    found = read_json(file)
    if isinstance(found, Mapping) and isinstance(found.get("codes"), Mapping):
        found = found["codes"]
    if not isinstance(found, Mapping):
        raise UserError(f'{file}: must be a JSON object: label -> {{"value": ..., "scheme": ..., "meaning": ...}}.')
    for name in found:
        if name not in labels.names:
            raise UserError(f"{file}: {unknown_name(str(name), '', list(labels.names))}")
    return {str(name): _code_of(file, str(name), entry) for name, entry in found.items()}


def _code_of(file: Path, name: str, entry: Any) -> LabelCode:
    texts = [entry.get(key) for key in ("value", "scheme", "meaning")] if isinstance(entry, Mapping) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f'{file}: "{name}" is {shown(entry)}; it needs value, scheme and meaning as text.')
    value, scheme, meaning = (str(text).strip() for text in texts)
    if len(value) > _LONGEST_VALUE or len(scheme) > _LONGEST_VALUE or "\\" in value + scheme + meaning:
        raise UserError(f'{file}: "{name}": value and scheme have at most {_LONGEST_VALUE} characters, no backslash.')
    side = entry.get("laterality")
    if side is not None and side not in _MODIFIERS:
        raise UserError(f'{file}: "{name}": laterality is {shown(side)}; it must be one of {", ".join(_MODIFIERS)}.')
    abnormal = entry.get("abnormal", False)
    if not isinstance(abnormal, bool):
        raise UserError(f'{file}: "{name}": abnormal is {shown(abnormal)}; it must be true or false.')
    kind = Code(value, scheme, _meaning(meaning))
    return LabelCode(_ABNORMAL if abnormal else _ANATOMY, kind, None if side is None else _MODIFIERS[side])


def _meaning(text: str) -> str:
    """Return a text that DICOM can hold as a code's meaning."""
    plain = "".join(character if character.isprintable() and character != "\\" else " " for character in text)
    return " ".join(plain.split())[:_LONGEST_MEANING].strip() or "segment"
