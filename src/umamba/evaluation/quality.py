"""Learn from scored cases how far to trust a segmentation without a reference.

The main sign is disagreement: 1 - the mean DSC of every pair of networks of an ensemble (or of views of one network),
by label; it ranks segmentations best (Zenk et al., arXiv 2406.03323). The second one is the entropy of the mean
probability in the segmented voxels. `calibrate_labels` learns from scored cases what they mean, see `conformal`.
`quality_estimates` applies it to a segmentation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas

from umamba.evaluation.conformal import Fit, fewest_errors, fit_scores
from umamba.evaluation.statistics import mean_label, with_case_means
from umamba.io import UserError, read_json, write_json
from umamba.settings.fields import key
from umamba.settings.validate import plain, read_record

SIGNS = ("disagreement", "entropy")  # larger where a segmentation is worse
METRICS = ("dsc", "nsd")
DISTANCES = ("spacing", "field_of_view", "intensities")
FORMAT = 1
_FEWEST = 20  # cases of a label
_USUAL = 0.1  # quantile of the scores that a whole segmentation is expected to reach
_PARTS = 5

Views = Literal["networks", "one network"]


@dataclass(frozen=True, kw_only=True)
class LabelFits:
    """What was learned of one label, or of the mean over labels.

    Attributes:
        label: its name.
        cases: number of scored cases in which it was found.
        found: share of the cases that carry it in which it was found.
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
        tile_scale: edge of a tile in patches of training.
        rules: sentence on the rules of the scores.
        cases: number of scored cases.
        unlike: number of them whose images are unlike those of training.
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
    tile_scale: int = key(low=1)
    rules: str
    cases: int = key(low=0)
    unlike: int = key(low=0)
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


def fewest_cases(coverage: float) -> int:
    """Return how many cases of a label are needed for expected scores.

    Args:
        coverage: of the intervals, which half of the cases make.
    """
    return max(_FEWEST, 2 * fewest_errors(coverage))


def calibrate_labels(
    table: pandas.DataFrame, names: Sequence[str], groups: Mapping[str, str], coverage: float
) -> tuple[LabelFits, ...]:
    """Learn from scored cases what their signs mean.

    Args:
        table: columns case, label, dsc, nsd, disagreement and entropy, a row for each label that a case carries; NaN
            signs where the label was not found.
        names: names of the labels.
        groups: case -> its group, such as its patient; others are groups of their own.
        coverage: of the intervals.
    """
    whole, overall = _with_means(table, names), _overall(names)
    made = []
    for label in dict.fromkeys(whole["label"]):
        rows = whole[whole["label"] == label]
        own = rows.dropna(subset=list(SIGNS))
        fits = []
        for metric in METRICS:
            scored = own.dropna(subset=[metric])
            if len(scored) >= fewest_cases(coverage):
                of_cases = [groups.get(case, case) for case in scored["case"]]
                found = fit_scores(
                    metric, scored[list(SIGNS)].to_numpy(), scored[metric].to_numpy(), of_cases, coverage
                )
                fits += [found] if found is not None else []
        scores = own["dsc"].dropna()
        usual = float(scores.quantile(_USUAL if label == overall else _USUAL / len(names))) if len(scores) else 0.0
        found_in = len(own) / len(rows)
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
