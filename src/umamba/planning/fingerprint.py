"""Compute the fingerprint of a dataset: sizes, spacings and foreground intensities of the training cases.

The rules are those of nnU-Net's experiment_planning/dataset_fingerprint/fingerprint_extractor.py. Each case is decoded
once and checked at the same time.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from umamba.datasets import (
    REORIENTING_READER,
    Finding,
    RawCase,
    RawDataset,
    findings_table,
    inspect_case,
    list_findings,
    over_cases,
    same_images,
    unseen_labels,
    voxel_digest,
)
from umamba.io import UserError
from umamba.planning.crop import nonzero_box
from umamba.planning.plan import (
    LEAST_MM,
    MOST_MM,
    MOST_VOXELS,
    Intensity,
    axis3,
    entries_of,
    parse_record,
    read_orientations,
)
from umamba.settings import key
from umamba.settings.validate import read_record

log = logging.getLogger(__name__)

_TOTAL_DRAWS = 100_000_000
_SEED = 1234
_DRAWS_AT_ONCE = 1 << 22  # limits the memory and does not change the draws
_COUNTABLE = 1 << 20  # integers of a smaller range are counted in a table, which is faster than sorting them


@dataclass(frozen=True)
class Fingerprint:
    """Statistics of the training cases. Axes are in file order (Z, Y, X).

    Attributes:
        spacings: spacing of each case in mm.
        shapes_after_crop: size of each case in voxels after the crop to the nonzero region.
        intensity: foreground intensities of each channel.
        median_relative_size_after_cropping: median over the cases of the voxels after the crop / before it.
        orientations: in which the images are stored, such as "RAS", the most frequent first; empty for 2D images and in
            files of earlier versions. They are not compared.
    """

    spacings: tuple[tuple[float, float, float], ...] = key(above=LEAST_MM, high=MOST_MM)
    shapes_after_crop: tuple[tuple[int, int, int], ...] = key(low=1, high=MOST_VOXELS)
    intensity: tuple[Intensity, ...] = key()
    median_relative_size_after_cropping: float = key(above=0, high=1)
    orientations: tuple[str, ...] = field(default=(), compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the content of nnU-Net's dataset_fingerprint.json, and the orientations if they are known."""
        return {
            "spacings": [list(spacing) for spacing in self.spacings],
            "shapes_after_crop": [list(shape) for shape in self.shapes_after_crop],
            "foreground_intensity_properties_per_channel": {
                str(index): asdict(channel) for index, channel in enumerate(self.intensity)
            },
            "median_relative_size_after_cropping": self.median_relative_size_after_cropping,
            **({"orientations": list(self.orientations)} if self.orientations else {}),
        }

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> "Fingerprint":
        """Read the content of nnU-Net's dataset_fingerprint.json.

        Args:
            obj: the content.

        Raises:
            UserError: a key is missing, or a value has another type or is outside its limits.
        """
        return parse_record("fingerprint", obj, _fingerprint)


def _fingerprint(obj: Mapping[str, Any]) -> Fingerprint:
    intensity = read_intensities(obj["foreground_intensity_properties_per_channel"])
    found = read_record(
        Fingerprint,
        {**obj, "intensity": intensity, "orientations": read_orientations(obj.get("orientations", ()))},
    )
    if not found.spacings or len(found.spacings) != len(found.shapes_after_crop):
        raise UserError(
            f"spacings: has {len(found.spacings)} entries, and shapes_after_crop {len(found.shapes_after_crop)}, but "
            "both need one for each training case."
        )
    return found


def read_intensities(obj: Any) -> tuple[Intensity, ...]:
    """Read nnU-Net's foreground intensities.

    Args:
        obj: statistics of each channel, under the keys "0", "1", ...

    Raises:
        UserError: a channel or a statistic is missing, or a value is no number or outside its limits.
    """
    section = "foreground_intensity_properties_per_channel"
    if isinstance(obj, Mapping) and not obj:
        return ()  # plans of datasets whose normalisation reads the image only
    entries = entries_of(obj, section)
    missing = next((index for index in range(len(entries)) if str(index) not in entries), None)
    if missing is not None:
        raise UserError(f"{section}.{missing}: missing. The channels must have the keys 0, 1, ...")
    return tuple(read_record(Intensity, entries[str(index)], f"{section}.{index}") for index in range(len(entries)))


@dataclass(frozen=True)
class Draws:
    """Intensities drawn from a channel.

    Attributes:
        values: the distinct intensities in ascending order, float32.
        counts: how often each was drawn, in the smallest unsigned type that holds them, because float intensities
            rarely repeat and there is nearly one count for each draw.
    """

    values: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class CaseStatistics:
    """What one case contributes to the fingerprint.

    Attributes:
        findings: its problems.
        spacing: (Z, Y, X) in mm; None if the case has errors.
        shape_after_crop: (Z, Y, X) in voxels; None if the case has errors.
        relative_size: voxels after the crop / before it.
        draws: one entry per channel; empty if the case has errors or no foreground. `pooled_fingerprint` removes them.
        orientation: in which the image is stored, such as "RAS"; None for 2D images and if the case has errors.
        content: hash of the image's voxels; empty if it cannot be decoded.
        label_values: the values of the label map; None if it cannot be decoded or they are no integers.
    """

    findings: tuple[Finding, ...]
    spacing: tuple[float, float, float] | None = None
    shape_after_crop: tuple[int, int, int] | None = None
    relative_size: float = 1.0
    draws: list[Draws] = field(default_factory=list)
    orientation: str | None = None
    content: str = ""
    label_values: tuple[int, ...] | None = None


def compute_fingerprint(dataset: RawDataset, workers: int) -> Fingerprint:
    """Return the fingerprint alone; see `inspect_dataset`.

    Args:
        dataset: the dataset.
        workers: worker processes; 0 or 1 works in this process.

    Raises:
        UserError: with a table of all problems of the dataset, including those of its listing.
    """
    return inspect_dataset(dataset, workers)[0]


def inspect_dataset(dataset: RawDataset, workers: int) -> tuple[Fingerprint, tuple[Finding, ...], dict[str, str]]:
    """Decode and check every training case of a dataset and compute the statistics.

    The same image under several names (`same_images`) is not among the findings, because groups and test images, which
    can change without the training cases, decide about it. It is only in the table of an error.

    Args:
        dataset: the dataset.
        workers: worker processes; 0 or 1 works in this process.

    Returns:
        The fingerprint; the warnings about the decoded images, which are also logged; and the hash of each training
        case's voxels.

    Raises:
        UserError: with a table of all problems of the dataset, including those of its listing.
    """
    _, findings = list_findings(dataset.root)
    num_draws = _TOTAL_DRAWS // max(1, len(dataset.training))
    # The workers need only labels and channels. Without its cases the dataset is small to pickle.
    inspect = partial(case_statistics, replace(dataset, training=(), test=(), groups={}), num_draws=num_draws)
    statistics = over_cases(inspect, dataset.training, workers, f"Fingerprint of {dataset.name}")
    decoded = [finding for case in statistics for finding in case.findings]
    cases = list(zip(dataset.training, statistics, strict=True))
    decoded += unseen_labels(dataset, {case.case_id: found.label_values for case, found in cases})
    contents = {case.case_id: found.content for case, found in cases if found.content}
    if any(finding.severity == "error" for finding in [*findings, *decoded]):
        table = findings_table([*findings, *decoded, *same_images(dataset, contents)])
        raise UserError(f"{dataset.root}: the dataset has errors and cannot be used.\n{table}")
    if decoded:
        log.warning("%s:\n%s", dataset.root, findings_table(decoded))
    counts = Counter(case.orientation for case in statistics if case.orientation is not None)
    if len(counts) > 1 and dataset.reader is None:
        log.warning(
            "%s: the training images are stored in different orientations: %s. The network would learn mirrored and "
            'turned anatomy side by side and confuse left and right. Set "overwrite_image_reader_writer": "%s" in '
            "dataset.json, which turns all of them to RAS.",
            dataset.root,
            ", ".join(f"{name} ({count})" for name, count in counts.most_common()),
            REORIENTING_READER,
        )
    return pooled_fingerprint(dataset.root.name, statistics), tuple(decoded), contents


def case_statistics(dataset: RawDataset, case: RawCase, num_draws: int) -> CaseStatistics:
    """Decode and check one case, and draw intensities from its foreground.

    The foreground are the voxels with a label above 0, including the ignore label.

    Args:
        dataset: the dataset, for its labels and channels.
        case: the case.
        num_draws: number of draws per channel.
    """
    inspection = inspect_case(dataset, case)
    image, label = inspection.image, inspection.label
    content = "" if image is None else voxel_digest(image.array)
    if image is None or label is None or any(finding.severity == "error" for finding in inspection.findings):
        return CaseStatistics(inspection.findings, content=content, label_values=inspection.values)
    _, box = nonzero_box(image.array)
    cropped = image.array[(slice(None), *box)]
    foreground = label.array[(0, *box)] > 0
    return CaseStatistics(
        inspection.findings,
        image.geometry.spacing,
        axis3(foreground.shape),
        foreground.size / label.array.size,
        list(draw_intensities(cropped[:, foreground], num_draws)),
        inspection.orientation,
        content,
        inspection.values,
    )


def draw_intensities(voxels: np.ndarray, num_draws: int) -> Iterator[Draws]:
    """Draw voxels of each channel with replacement.

    The draws equal those of numpy's RandomState(1234).choice, channel after channel. Only their counts are kept.

    Args:
        voxels: (C, N). Nothing is yielded if N is 0.
        num_draws: number of draws per channel.
    """
    random = np.random.RandomState(_SEED)
    if voxels.shape[1] == 0:
        return
    for channel in voxels:
        times = np.zeros(channel.size, dtype=np.int64)
        for done in range(0, num_draws, _DRAWS_AT_ONCE):
            drawn = random.randint(0, channel.size, size=min(_DRAWS_AT_ONCE, num_draws - done))
            times += np.bincount(drawn, minlength=channel.size)
        lowest = channel.min()
        if np.issubdtype(channel.dtype, np.integer) and int(channel.max()) - int(lowest) <= _COUNTABLE:
            place = channel.astype(np.int64) - int(lowest)
            values = (np.arange(place.max() + 1) + int(lowest)).astype(np.float32)
        else:
            values, place = np.unique(channel[times > 0].astype(np.float32), return_inverse=True)
            times = times[times > 0]
        counts = np.bincount(place.ravel(), weights=times)
        counts = counts.astype(np.min_scalar_type(int(counts.max())))
        yield Draws(values[counts > 0], counts[counts > 0])


def pooled_fingerprint(name: str, statistics: Sequence[CaseStatistics]) -> Fingerprint:
    """Combine the statistics of all cases into the fingerprint.

    Args:
        name: name of the dataset, for the error message.
        statistics: of all cases. Their draws are removed, channel after channel, to free their memory.

    Raises:
        UserError: no case has any foreground.
    """
    drawn = [case.draws for case in statistics if case.draws]
    if not drawn:
        raise UserError(f"{name}: no case of labelsTr has a labelled voxel. Add label maps with foreground.")
    return Fingerprint(
        spacings=tuple(case.spacing for case in statistics if case.spacing is not None),
        shapes_after_crop=tuple(case.shape_after_crop for case in statistics if case.shape_after_crop is not None),
        intensity=tuple(intensity_of([channels.pop(0) for channels in drawn]) for _ in range(len(drawn[0]))),
        median_relative_size_after_cropping=float(np.median([case.relative_size for case in statistics])),
        orientations=tuple(
            name
            for name, _ in Counter(
                case.orientation for case in statistics if case.orientation is not None
            ).most_common()
        ),
    )


def intensity_of(parts: list[Draws]) -> Intensity:
    """Return the statistics of a channel over the draws of all cases.

    Mean and standard deviation need all values and counts as float64 at once, because the dot product of parts would
    round in another way. Everything else is freed before.

    Args:
        parts: the draws of each case; the list is emptied to free their memory.
    """
    values, counts = _merged(parts)
    lowest, highest = float(values[0]), float(values[-1])
    low, median, high = _percentiles(values, counts, (0.5, 50, 99.5))
    total = int(counts.sum())
    values = values.astype(np.float64)
    weights = counts.astype(np.float64)
    mean = float(values @ weights) / total
    values -= mean
    np.square(values, out=values)
    return Intensity(
        mean=mean,
        median=median,
        std=float(np.sqrt(values @ weights / total)),
        min=lowest,
        max=highest,
        percentile_00_5=low,
        percentile_99_5=high,
    )


def _merged(parts: list[Draws]) -> tuple[np.ndarray, np.ndarray]:
    """Empty the parts; return their values in ascending order, equal ones in the order of the parts, and the counts."""
    values = np.concatenate([part.values for part in parts])
    counts = np.concatenate([part.counts for part in parts])
    parts.clear()
    order = np.argsort(values, kind="stable")
    values = values[order]
    return values, counts[order]


def _percentiles(values: np.ndarray, counts: np.ndarray, percents: Sequence[float]) -> list[float]:
    """Return percentiles of ascending values, each of which stands for as many draws as its count."""
    upto = counts.astype(np.int64)
    np.cumsum(upto, out=upto)  # draws up to each value, in place because cumsum(dtype=...) would hold a second copy
    found = []
    for percent in percents:
        rank = percent / 100 * (int(upto[-1]) - 1)
        whole = int(rank)
        low, high = (float(values[np.searchsorted(upto, whole + 1 + step)]) for step in (0, rank > whole))
        found.append(low + (high - low) * (rank - whole))
    return found
