"""What is expected of a segmentation, from its signs and a calibration: scores with intervals, or why there are none.

A case gets no number where nothing was learned: its image is farther from the training images than any that was scored,
its signs are worse than any that was scored, or the label was not found.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas

from umamba.evaluation.quality import DISTANCES, METRICS, SIGNS, Calibration, LabelFits
from umamba.evaluation.risk_coverage import trust

# An image may be farther from the training images by so much than the farthest one that was scored: natural logarithms
# of ratios, so that 0.1 are 10 %.
_SLACK = 0.1
_MOSTLY = 0.9  # share of the cases from which on a label is missed if it is not found

Signs = Mapping[str, Mapping[str, float | None]]  # label -> sign -> value; None: the label was not found


@dataclass(frozen=True)
class Estimate:
    """What is expected of one label of one segmentation.

    Attributes:
        case: name of the case.
        label: name of the label, or of the mean over labels.
        scores: metric -> expected score and the ends of its interval; empty: nothing can be said.
        signs: sign -> value; None: the label was not found.
        reason: why this score is expected, or why there is none.
        review: whether somebody should look.
    """

    case: str
    label: str
    scores: Mapping[str, tuple[float, float, float]]
    signs: Mapping[str, float | None]
    reason: str
    review: bool


def estimate(
    calibration: Calibration,
    case: str,
    signs: Signs,
    distances: Mapping[str, float],
    differences: Sequence[str],
    review_below: float | None = None,
) -> list[Estimate]:
    """Return what is expected of a segmentation: a row for each label and, if there are several, for their mean.

    Args:
        calibration: what was learned.
        case: name of the case.
        signs: of each label.
        distances: of the image from those of training, see `DISTANCES`.
        differences: sentences that say how the image is unlike those of training.
        review_below: expected DSC below which somebody should look; None: see `LabelFits.usual`.
    """
    outside = _outside(calibration, distances, differences)
    known = {fits.label: fits for fits in calibration.labels}
    rows = {name: dict(signs.get(name, {})) for name in calibration.names}
    if len(calibration.names) > 1:
        rows[calibration.overall] = _mean_signs(list(rows.values()))
    return [
        _of_label(calibration, case, name, own, known.get(name), outside, review_below) for name, own in rows.items()
    ]


def _mean_signs(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Return the mean of each sign over the labels that were found."""
    found = [row for row in rows if _whole(row)]
    return {sign: float(np.mean([row[sign] for row in found])) if found else None for sign in SIGNS}  # type: ignore[arg-type]


def _whole(signs: Mapping[str, float | None]) -> bool:
    return all(signs.get(sign) is not None for sign in SIGNS)


def _outside(calibration: Calibration, distances: Mapping[str, float], differences: Sequence[str]) -> str:
    """Return how an image is outside what was calibrated; empty if it is not."""
    if differences and not calibration.unlike:
        return "; ".join(differences)
    for name in DISTANCES:
        most, own, words = getattr(calibration, name), distances.get(name), name.replace("_", " ")
        if own is None:
            return f"how far its {words} is from training's is not known"
        if own > most + _SLACK:
            return (
                f"{words} a factor of {math.exp(min(own, 99)):.3g} from the median of training, at most "
                f"{math.exp(min(most, 99)):.3g} in the calibrated cases"
            )
    return ""


def _of_label(
    calibration: Calibration,
    case: str,
    label: str,
    signs: Mapping[str, float | None],
    known: LabelFits | None,
    outside: str,
    review_below: float | None,
) -> Estimate:
    def without(reason: str, review: bool = True) -> Estimate:
        return Estimate(case, label, {}, signs, reason, review)

    if outside:
        return without(f"outside what was calibrated: {outside}")
    if signs.get("disagreement") is None and signs.get("entropy") is not None:
        return without("one network without mirroring and a single tile: nothing that could agree")
    if not _whole(signs):
        if known is None or known.found < _MOSTLY:
            return without("not found; whether it is in the image is not known", False)
        return without(f"not found, but in {100 * known.found:.0f} % of the calibrated cases it was")
    if known is None or not known.fits:
        return without(f"too few calibrated cases with this label ({0 if known is None else known.cases})", False)
    values = np.array([[signs[sign] for sign in SIGNS]], dtype=np.float64)
    agreement = f"mean DSC {1 - values[0, 0]:.3f} between {_members(calibration)}"
    if any(fit.beyond(values)[0] for fit in known.fits):
        return without(f"outside what was calibrated: {agreement}, lower than in any calibrated case")
    scores = {}
    for fit in known.fits:
        expected, low, high = (float(found[0]) for found in fit.interval(values))
        scores[fit.metric] = (expected, low, high)
    limit = known.usual if review_below is None else review_below
    low_score = "dsc" in scores and scores["dsc"][0] < limit
    said = f"; expected DSC below {limit:.3f}" if low_score else ""
    return Estimate(case, label, scores, signs, agreement + said, low_score)


def _members(calibration: Calibration) -> str:
    if calibration.views == "networks":
        return f"{calibration.networks} networks"
    return "views of one network (mirrored, other tiles)"


def worst_first(estimates: Sequence[Estimate], overall: str) -> list[str]:
    """Return the cases, those that should be looked at first.

    At first those without a number, by disagreement; then those with a row that somebody should look at, and the rest,
    both by expected DSC.

    Args:
        estimates: of all cases.
        overall: name of the row that stands for the whole case.
    """
    by_case: dict[str, list[Estimate]] = {}
    for own in estimates:
        by_case.setdefault(own.case, []).append(own)

    def urgency(case: str) -> tuple[int, float, str]:
        rows = by_case[case]
        whole = next((row for row in rows if row.label == overall), rows[-1])
        unknown = not whole.scores and whole.review
        expected, disagreement = whole.scores.get("dsc", (math.nan,))[0], whole.signs.get("disagreement")
        trusted = float(trust(np.array(expected), np.array(math.nan if disagreement is None else disagreement)))
        return (0 if unknown else 1 if any(row.review for row in rows) else 2, trusted, case)

    return sorted(by_case, key=urgency)


def quality_table(estimates: Sequence[Estimate]) -> pandas.DataFrame:
    """Return estimates as a table; `review` is 1 or 0, cells are empty where nothing can be said.

    Args:
        estimates: in the order of the rows.
    """
    rows = []
    for own in estimates:
        row: dict[str, Any] = {"case": own.case, "label": own.label}
        for metric in METRICS:
            values = own.scores.get(metric, (math.nan,) * 3)
            row |= dict(zip((f"expected_{metric}", f"{metric}_low", f"{metric}_high"), values, strict=True))
        row |= {sign: math.nan if own.signs.get(sign) is None else own.signs[sign] for sign in SIGNS}
        rows.append({**row, "review": int(own.review), "reason": own.reason})
    return pandas.DataFrame(rows)
