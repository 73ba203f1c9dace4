"""How far to trust a segmentation without a reference: its expected DSC and NSD, or why nothing can be said.

The main sign is disagreement: 1 - the mean DSC of every pair of networks of an ensemble (or of views of one network),
by label; it ranks segmentations best (Zenk et al., arXiv 2406.03323). The second one is the entropy of the mean
probability in the segmented voxels. `calibrate_labels` learns from scored cases what they mean, see `conformal`. A case
gets no number where nothing was learned: its image is farther from the training images than any that was scored, its
signs are worse than any that was scored, or the label was not found.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas

from umamba.evaluation.conformal import Fit, fit_scores
from umamba.evaluation.statistics import mean_label, with_case_means
from umamba.io import UserError, read_json, write_json
from umamba.settings.fields import key
from umamba.settings.validate import plain, read_record

SIGNS = ("disagreement", "entropy")  # larger where a segmentation is worse
METRICS = ("dsc", "nsd")
DISTANCES = ("spacing", "field_of_view", "intensities")
FORMAT = 1
FEWEST = 20  # cases of a label; fewer give no interval of 90 %
# An image may be farther from the training images by so much than the farthest one that was scored: natural logarithms
# of ratios, so that 0.1 are 10 %.
_SLACK = 0.1
_USUAL = 0.1  # quantile of the scores that a whole segmentation is expected to reach
_MOSTLY = 0.9  # share of the cases from which on a label is missed if it is not found
_PARTS = 5

Views = Literal["networks", "one network"]
Signs = Mapping[str, Mapping[str, float | None]]  # label -> sign -> value; None: the label was not found


@dataclass(frozen=True, kw_only=True)
class LabelFits:
    """What was learned of one label, or of the mean over labels.

    Attributes:
        label: its name.
        cases: number of scored cases in which it was found.
        found: share of all cases in which it was found.
        usual: DSC that nine of ten of these cases reached; of each of several labels, all but a tenth of a share of
            1 / number of labels, so that the number of cases to look at does not grow with that of the labels.
        fits: one for each metric; empty: there were too few cases.
    """

    label: str
    cases: int = key(low=0)
    found: float = key(low=0, high=1)
    usual: float = key(low=0, high=1)
    fits: tuple[Fit, ...]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What `umamba calibrate` learned, and for which networks.

    Attributes:
        format: version of this form.
        coverage: of the intervals.
        views: whose agreement counts: several networks, or views of one network (mirrored, other tiles).
        networks: number of networks that decide together.
        identities: hashes of the networks' checkpoints that segmented the scored cases.
        names: names of the labels.
        tile_step_size: of the sliding window.
        tta: test-time augmentation.
        rules: sentence on the rules of the scores.
        cases: number of scored cases.
        spacing: largest distance of a scored image's spacing from that of training, natural logarithm of the ratio.
        field_of_view: the same of its field of view.
        intensities: the same of its intensities, see `inference.likeness.distances`.
        labels: what was learned of each label and, if there are several, of their mean.
    """

    format: int = key(low=FORMAT, high=FORMAT)
    coverage: float = key(above=0, below=1)
    views: Views
    networks: int = key(low=1)
    identities: tuple[str, ...]
    names: tuple[str, ...]
    tile_step_size: float = key(above=0, high=1)
    tta: bool
    rules: str
    cases: int = key(low=0)
    spacing: float = key(low=0)
    field_of_view: float = key(low=0)
    intensities: float = key(low=0)
    labels: tuple[LabelFits, ...]

    def write(self, path: Path, record: Mapping[str, Any]) -> None:
        """Write the calibration as JSON.

        Args:
            path: the file.
            record: further keys of the file.
        """
        write_json(path, {**plain(self), **record})

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Read a calibration.

        Args:
            path: JSON file of `umamba calibrate`.

        Raises:
            UserError: the file is missing or no calibration.
        """
        remedy = "Give the quality.json that umamba calibrate wrote."
        try:
            found = read_record(cls, read_json(path))
        except UserError as error:
            raise UserError(f"{path}: {str(error).removeprefix(f'{path}: ')} {remedy}") from None
        for own in found.labels:
            for fit in own.fits:
                whole = fit.expected.is_whole() and fit.error.is_whole() and len(fit.weights) == len(SIGNS)
                if not whole or fit.metric not in METRICS:
                    raise UserError(f"{path}: the {fit.metric} of {own.label} is damaged. {remedy}")
        return found

    @property
    def overall(self) -> str:
        """Name of the row that stands for the whole case: the only label, or the mean of several."""
        return _overall(self.names)


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


def calibrate_labels(
    table: pandas.DataFrame, names: Sequence[str], groups: Mapping[str, str], coverage: float
) -> tuple[LabelFits, ...]:
    """Learn from scored cases what their signs mean.

    Args:
        table: columns case, label, dsc, nsd, disagreement and entropy; NaN signs where the label was not found.
        names: names of the labels.
        groups: case -> its group, such as its patient; others are groups of their own.
        coverage: of the intervals.
    """
    total = table["case"].nunique()
    whole, overall = _with_means(table, names), _overall(names)
    made = []
    for label in dict.fromkeys(whole["label"]):
        own = whole[(whole["label"] == label)].dropna(subset=list(SIGNS))
        fits = []
        for metric in METRICS:
            scored = own.dropna(subset=[metric])
            if len(scored) >= FEWEST:
                of_cases = [groups.get(case, case) for case in scored["case"]]
                found = fit_scores(
                    metric, scored[list(SIGNS)].to_numpy(), scored[metric].to_numpy(), of_cases, coverage
                )
                fits += [found] if found is not None else []
        scores = own["dsc"].dropna()
        usual = float(scores.quantile(_USUAL if label == overall else _USUAL / len(names))) if len(scores) else 0.0
        found_in = len(own) / total if total else 0.0
        made.append(LabelFits(label=label, cases=len(scores), found=found_in, usual=usual, fits=tuple(fits)))
    return tuple(made)


def _overall(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else mean_label(names)


def _with_means(table: pandas.DataFrame, names: Sequence[str]) -> pandas.DataFrame:
    """Return the table with a row for the mean over the labels of each case, if there are several labels."""
    columns = [*METRICS, *SIGNS, *(["confidence"] if "confidence" in table else [])]
    if len(names) == 1:
        return table
    return with_case_means(table, columns)


def out_of_sample(
    table: pandas.DataFrame, names: Sequence[str], groups: Mapping[str, str], coverage: float
) -> pandas.DataFrame:
    """Return for each case what is expected of it after learning from the other cases, in five parts.

    Args:
        table: as in `calibrate_labels`.
        names: as in `calibrate_labels`.
        groups: as in `calibrate_labels`; a group is in one part.
        coverage: of the intervals.

    Returns:
        The rows of the table and of the means that have a DSC and signs, with the columns expected, low, high and
        beyond (whether its signs are worse than any that was learned from); parts with too few cases are left out.
    """
    cases = sorted(set(table["case"]))
    own_group = {case: groups.get(case, case) for case in cases}
    order = np.random.default_rng(0).permutation(sorted(set(own_group.values())))
    part_of = {group: number % _PARTS for number, group in enumerate(order)}
    part = table["case"].map(lambda case: part_of[own_group[case]])
    found = []
    for number in range(_PARTS):
        learned = calibrate_labels(table[part != number], names, groups, coverage)
        rest = _with_means(table[part == number], names).dropna(subset=["dsc", *SIGNS])
        for fits in learned:
            fit = next((fit for fit in fits.fits if fit.metric == "dsc"), None)
            rows = rest[rest["label"] == fits.label]
            if fit is not None and len(rows):
                signs = rows[list(SIGNS)].to_numpy()
                expected, low, high = fit.interval(signs)
                found.append(rows.assign(expected=expected, low=low, high=high, beyond=fit.beyond(signs)))
    if not found:
        return table.iloc[:0].assign(expected=0.0, low=0.0, high=0.0, beyond=False)
    return pandas.concat(found, ignore_index=True)


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
    if differences:
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
    """Return the cases, those that should be looked at first: without a number, then by expected DSC.

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
        dsc = whole.scores.get("dsc", (0.0, 0.0, 0.0))[0]
        unknown = not whole.scores and whole.review
        return (0 if unknown else 1 if any(row.review for row in rows) else 2, dsc, case)

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
