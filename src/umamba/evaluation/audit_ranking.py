"""Rank cases, parts, slices and pairs of labels of a training set by how probable it is that they are labelled wrongly.

Each kind of difference (`audit`) is compared with the same kind in the other cases, because networks make errors of
their own, larger ones of some labels than of others. A score is the distance from the median case in standard
deviations, which follow from the ninth decile, so that a tenth of the cases may be faulty: 0 is an ordinary case, 4
hardly ever happens by chance. The score of a case is its largest one.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from umamba.evaluation.audit import FOREGROUND, CaseFacts, Offset, SliceDifference, length_vox
from umamba.evaluation.audit_parts import Part

SWAPPED, SHIFTED, RESIZED, THICKNESS = "swapped", "shifted", "resized", "thickness"
MISSING, SHORT = "missing", "short"  # an object, or a part of one, that is background in the labels
INVENTED, LEAKED = "invented", "leaked"  # ... in the segmentation
MISTAKEN = "mistaken"  # a part that has another label
SLICE, OVERLAP = "slice", "overlap"
KINDS = (SWAPPED, SHIFTED, RESIZED, THICKNESS, MISSING, SHORT, INVENTED, LEAKED, MISTAKEN, SLICE, OVERLAP)
_PART_KINDS = (MISSING, SHORT, INVENTED, LEAKED, MISTAKEN)
# Smallest spread of a kind: where networks and labels agree perfectly, the smallest difference is still no finding.
_LEAST_SPREAD = {
    **{SWAPPED: 0.05, SHIFTED: 0.15, RESIZED: 0.1, THICKNESS: 0.1, SLICE: 0.1, OVERLAP: 0.03},
    **dict.fromkeys(_PART_KINDS, 0.15),
}
_HIGH, _HIGH_Z = 0.9, 1.2816  # a quantile, and how many standard deviations of a normal distribution it lies high
_CLEAR = 3.0  # score from which on a kind that says what is wrong is named before a low overlap, which any fault gives
_ORDINARY = 1.0  # score up to which nothing is said of a case
_POOR = 0.5  # median DSC below which the networks show little about the labels
_MOSTLY = 0.5  # share of voxels that are crossed from which on two labels are exchanged, and not merely confused


@dataclass(frozen=True)
class Suspicion:
    """One kind of difference of a case.

    Attributes:
        kind: one of `KINDS`.
        values: the label values it is about.
        size: the difference in the unit of its kind.
        usual: what the median case has, of a kind that has a sign.
        score: compared with the other cases; 0 is ordinary.
    """

    kind: str
    values: tuple[int, ...]
    size: float
    usual: float
    score: float


@dataclass(frozen=True)
class RankedCase:
    """A case in the order of the suspicion.

    Attributes:
        case: its name.
        score: the largest of its suspicions.
        suspicions: the largest of each kind, first the one that explains the case best.
        facts: what was measured.
    """

    case: str
    score: float
    suspicions: tuple[Suspicion, ...]
    facts: CaseFacts

    @property
    def main(self) -> Suspicion:
        """The suspicion that explains the case best."""
        return self.suspicions[0]

    def score_of(self, kind: str) -> float:
        """Return the score of a kind; 0 if the case has no such difference."""
        return next((each.score for each in self.suspicions if each.kind == kind), 0.0)


def rank_cases(facts: Mapping[str, CaseFacts]) -> list[RankedCase]:
    """Return the cases, the most suspicious ones first.

    Args:
        facts: case -> what was measured. The cases are compared with each other, so that a few give little.
    """
    found: dict[str, list[Suspicion]] = {case: [] for case in facts}
    for (kind, _), differences in _populations(facts).items():
        median, spread = _spread([each.size for each in differences.values()], _LEAST_SPREAD[kind])
        for case, (size, values, usual) in differences.items():
            found[case].append(Suspicion(kind, values, size, usual, (size - median) / spread))
    ranked = [RankedCase(case, *_largest(suspicions, facts[case]), facts[case]) for case, suspicions in found.items()]
    return sorted(ranked, key=lambda each: -each.score)


def _largest(suspicions: Sequence[Suspicion], facts: CaseFacts) -> tuple[float, tuple[Suspicion, ...]]:
    """Return the highest score, and the largest suspicion of each kind in the order in which they explain a case.

    An exchange explains all other differences, and then a label that one map does not have. Any fault lowers the
    overlap, which is named first only if nothing else is clear.
    """
    kept: dict[str, Suspicion] = {}
    for each in suspicions:
        if each.kind not in kept or each.score > kept[each.kind].score:
            kept[each.kind] = each
    score = max((each.score for each in kept.values()), default=0.0)

    def order(each: Suspicion) -> tuple[bool, bool, bool, float]:
        absent = each.kind in (MISSING, INVENTED) and any(facts.overlaps.get(value) == 0 for value in each.values)
        exchanged = each.kind == SWAPPED and each.size >= _MOSTLY
        explains = each.kind != OVERLAP and each.score >= min(_CLEAR, score / 2)
        return not exchanged, not absent, not explains, -each.score

    return score, tuple(sorted(kept.values(), key=order))


class _Difference(NamedTuple):
    """A difference of one kind: its size, the label values it is about, and the median case's signed value."""

    size: float
    values: tuple[int, ...]
    usual: float = 0.0


def _populations(facts: Mapping[str, CaseFacts]) -> dict[tuple[str, tuple[int, ...]], dict[str, _Difference]]:
    """Return for each kind, and label where labels differ, the difference of each case."""
    found: dict[tuple[str, tuple[int, ...]], dict[str, _Difference]] = defaultdict(dict)
    for case, each in facts.items():
        for value, overlap in each.overlaps.items():
            found[OVERLAP, (value,)][case] = _Difference(1 - overlap, (value,))
        pair = max(each.crossed, key=lambda own: each.crossed[own], default=())
        found[SWAPPED, ()][case] = _Difference(each.crossed[pair], pair) if pair else _Difference(0.0, ())
        for kind in _PART_KINDS:
            part = _largest_part(each, kind)
            found[kind, ()][case] = _Difference(0.0, ()) if part is None else _Difference(part.size, _values_of(part))
        found[SLICE, ()][case] = _Difference(max((own.size for own in each.slices), default=0.0), ())
    for value, offsets in _offsets_of(facts).items():
        shifts = {case: offset.shift_vox for case, offset in offsets.items()}
        shift = np.median(list(shifts.values()), axis=0)  # what networks and labels always differ
        for case, own in shifts.items():
            found[SHIFTED, (value,)][case] = _Difference(length_vox(np.subtract(own, shift).tolist()), (value,))
        found[RESIZED, (value,)] = _around({case: offset.growth_vox for case, offset in offsets.items()}, value)
    for value in {value for each in facts.values() for value in each.thickness}:
        thickness = {case: each.thickness[value] for case, each in facts.items() if value in each.thickness}
        found[THICKNESS, (value,)] = _around(thickness, value)
    return found


def _around(signed: Mapping[str, float], value: int) -> dict[str, _Difference]:
    """Return how far each case lies away from the median case, above or below it."""
    usual = float(np.median(list(signed.values())))
    return {case: _Difference(abs(own - usual), (value,), usual) for case, own in signed.items()}


def _offsets_of(facts: Mapping[str, CaseFacts]) -> dict[int, dict[str, Offset]]:
    found: dict[int, dict[str, Offset]] = defaultdict(dict)
    for case, each in facts.items():
        for offset in each.offsets:
            found[offset.value][case] = offset
    return found


def _largest_part(facts: CaseFacts, kind: str) -> Part | None:
    return next((part for part in facts.parts if part_kind(part) == kind), None)  # the largest parts come first


def _values_of(part: Part) -> tuple[int, ...]:
    return tuple(value for value in (part.given, part.predicted) if value > 0)


def _spread(sizes: Sequence[float], least: float) -> tuple[float, float]:
    """Return the median, and the spread above it as if the distribution were normal."""
    median, high = np.quantile(sizes, [0.5, _HIGH]).tolist()
    return median, max(least, (high - median) / _HIGH_Z)


def part_kind(part: Part) -> str:
    """Return what may be wrong with a part of the labels, in a word.

    Args:
        part: the part.

    Returns:
        missing or short (the segmentation has it, the labels do not: a whole object, or the rest of one), invented or
        leaked (the labels have it, the segmentation does not), or mistaken (another label).
    """
    if part.given == 0:
        return MISSING if part.whole else SHORT
    if part.predicted == 0:
        return INVENTED if part.whole else LEAKED
    return MISTAKEN


def ranked_parts(ranked: Iterable[RankedCase]) -> list[tuple[str, Part]]:
    """Return case and part of all parts, the largest relative to their label's objects first.

    Args:
        ranked: the cases.
    """
    return sorted(((each.case, part) for each in ranked for part in each.facts.parts), key=lambda own: -own[1].size)


def ranked_slices(ranked: Iterable[RankedCase]) -> list[tuple[str, SliceDifference]]:
    """Return case and slice of the most different slices of all cases.

    Args:
        ranked: the cases.
    """
    return sorted(((each.case, own) for each in ranked for own in each.facts.slices), key=lambda own: -own[1].size)


@dataclass(frozen=True)
class LabelPair:
    """Parts that have one value in the labels and another one in the segmentations.

    Attributes:
        given: the value in the labels.
        predicted: the value in the segmentations.
        cases: number of cases with such a part.
        parts: number of such parts.
        voxels: of all these parts.
        size: sum of the sizes of the parts.
        worst: the case with the largest of them.
    """

    given: int
    predicted: int
    cases: int
    parts: int
    voxels: int
    size: float
    worst: str


def ranked_pairs(ranked: Iterable[RankedCase]) -> list[LabelPair]:
    """Return the pairs of labels, those with most parts (weighted by their size) first.

    Args:
        ranked: the cases.
    """
    found: dict[tuple[int, int], list[tuple[str, Part]]] = defaultdict(list)
    for case, part in ranked_parts(ranked):
        found[part.given, part.predicted].append((case, part))
    pairs = [
        LabelPair(
            *pair,
            cases=len({case for case, _ in own}),
            parts=len(own),
            voxels=sum(part.voxels for _, part in own),
            size=sum(part.size for _, part in own),
            worst=own[0][0],
        )
        for pair, own in found.items()
    ]
    return sorted(pairs, key=lambda pair: -pair.size)


def reason(case: RankedCase, names: Mapping[int, str]) -> str:
    """Return a sentence on the main suspicion.

    Args:
        case: the case.
        names: label value -> name.
    """
    main = case.main
    if not case.facts.overlaps:
        return "Neither the labels nor the segmentation have a labelled voxel."
    if case.score < _ORDINARY:
        return "Nothing stands out."
    label = "the labelled area" if FOREGROUND in main.values else " and ".join(names[value] for value in main.values)
    offset = next((own for own in case.facts.offsets if main.values == (own.value,)), None)
    if main.kind == SWAPPED and main.values:
        first, second = (names[value] for value in main.values)
        word = "exchanged" if main.size >= _MOSTLY else "confused"
        return f"{first} and {second} are {word}: {main.size:.0%} of their common voxels are crossed."
    if main.kind == SHIFTED and offset is not None:
        z, y, x = offset.shift_vox
        return f"{label} lies {length_vox(offset.shift_vox):.1f} voxels away (z {z:+.1f}, y {y:+.1f}, x {x:+.1f})."
    if main.kind == RESIZED and offset is not None:
        side = "larger" if offset.growth_vox > 0 else "smaller"
        return f"{label} is {abs(offset.growth_vox):.1f} voxels {side} all around."
    if main.kind == THICKNESS:
        times, usual = (math.exp(value) for value in (case.facts.thickness[main.values[0]], main.usual))
        return f"{label} is {times:.1f} times as thick as in the segmentation, where {usual:.1f} times is usual."
    part = _largest_part(case.facts, main.kind) if main.kind in _PART_KINDS else None
    if part is not None:
        return part_sentence(part, names)
    if main.kind == SLICE and case.facts.slices:
        own = case.facts.slices[0]
        return f"Slice {own.index} along {'zyx'[own.axis]} differs in {own.voxels} voxels."
    if main.kind == OVERLAP:
        return f"{label} overlaps little with the segmentation: DSC {1 - main.size:.2f}."
    return "Nothing stands out."


def part_sentence(part: Part, names: Mapping[int, str]) -> str:
    """Return a sentence on a part.

    Args:
        part: the part.
        names: label value -> name.
    """
    z, y, x = part.centre_zyx
    place = f"around z {z}, y {y}, x {x} ({part.voxels} voxels)"
    given, predicted = names.get(part.given, "background"), names.get(part.predicted, "background")
    return {
        "missing": f"{predicted} seems to be missing {place}.",
        "short": f"{predicted} seems to end too early {place}.",
        "invented": f"{given} seems to be labelled where there is none {place}.",
        "leaked": f"{given} seems to reach too far {place}.",
        "mistaken": f"{given} seems to be {predicted} {place}.",
    }[part_kind(part)]


def weakness(ranked: Sequence[RankedCase]) -> str | None:
    """Return what to say of networks that segment too badly to judge labels; None if they do not.

    Args:
        ranked: the cases.

    Returns:
        A sentence if the median DSC over cases and labels is below 0.5.
    """
    found = [value for case in ranked for value in case.facts.overlaps.values()]
    median = float(np.median(found)) if found else 0.0
    if median >= _POOR:
        return None
    return (
        f"The networks agree with the labels poorly (median DSC {median:.2f}), so what differs is probably their "
        "fault. Train them longer."
    )
