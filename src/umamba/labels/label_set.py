"""What the numbers of a label map mean, as nnU-Net's dataset.json declares it: labels, regions, the ignore label.

Plain labels are mutually exclusive (softmax, one output a label and one for background). With regions, where some entry
covers several values, each region is an output of its own (sigmoid) and `regions_class_order` says which value each
region paints into the final map, later ones over earlier ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from umamba.io import UserError


@dataclass(frozen=True)
class LabelSet:
    """The foreground classes of a data set.

    Attributes:
        names: foreground names in the order of dataset.json, without background and ignore.
        values: the label values of each name: one, or several for a region.
        ignore: value of voxels that are left out of loss and scores, or None. Always the highest value.
        region_order: `regions_class_order`, the value each region paints; None for plain labels.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    ignore: int | None = None
    region_order: tuple[int, ...] | None = None

    @property
    def has_regions(self) -> bool:
        """Whether outputs overlap (sigmoid, one a region) instead of excluding each other (softmax)."""
        return self.region_order is not None

    @property
    def num_classes(self) -> int:
        """Number of network outputs: background and labels, or the regions."""
        return len(self.names) if self.has_regions else len(self.names) + 1

    @property
    def all_values(self) -> tuple[int, ...]:
        """All declared integers in ascending order, with 0 and the ignore label."""
        declared = {0}.union(*self.values)
        return tuple(sorted(declared if self.ignore is None else declared | {self.ignore}))

    @property
    def num_entries(self) -> int:
        """Entries of `labels` in dataset.json, with background and ignore: what nnU-Net's memory estimate counts."""
        return len(self.names) + 1 + (self.ignore is not None)

    @classmethod
    def from_json(
        cls, dataset_json_labels: Mapping[str, Any], regions_class_order: Sequence[int] | None = None
    ) -> "LabelSet":
        """Build from the `labels` of a dataset.json and its `regions_class_order`, or from what `to_json` returned.

        Raises UserError naming the entry if background 0 is missing, a value is no non-negative integer, values are
        not consecutive, `ignore` is not the highest, a value is used twice, or the order of regions does not fit.
        """
        if isinstance(dataset_json_labels, Mapping) and isinstance(dataset_json_labels.get("labels"), Mapping):
            return cls.from_json(dataset_json_labels["labels"], dataset_json_labels.get("regions_class_order"))
        if not isinstance(dataset_json_labels, Mapping) or not dataset_json_labels:
            raise UserError('labels: must be an object like {"background": 0, "liver": 1}.')
        if all(str(name).isdigit() for name in dataset_json_labels):
            raise UserError('labels: written as value: name. Turn them round, like {"background": 0, "liver": 1}.')
        entries = {name: _values_of(name, value) for name, value in dataset_json_labels.items()}
        if entries.get("background") != (0,):
            raise UserError('labels: "background" must be declared and be 0. Add it.')
        ignore = _ignore_of(entries)
        names = tuple(name for name in entries if name not in ("background", "ignore"))
        if not names:
            raise UserError("labels: only background is declared. Declare at least one label to segment.")
        values = tuple(entries[name] for name in names)
        has_regions = any(len(value) > 1 for value in values)
        if not has_regions:
            _check_unique(names, values)
        for name, value in zip(names, values, strict=True):
            if 0 in value:
                raise UserError(f'labels: "{name}" covers 0, which is the background. Give it a value from 1 on.')
        order = _order_of(names, values, regions_class_order) if has_regions else None
        label_set = cls(names, values, ignore, order)
        _check_consecutive(label_set)
        return label_set

    def to_json(self) -> dict[str, Any]:
        """Return {"labels": ..., "regions_class_order": ... or None} in nnU-Net's form; `from_json` reads it back."""
        labels: dict[str, Any] = {"background": 0}
        for name, value in zip(self.names, self.values, strict=True):
            labels[name] = value[0] if len(value) == 1 else list(value)
        if self.ignore is not None:
            labels["ignore"] = self.ignore
        return {"labels": labels, "regions_class_order": None if self.region_order is None else list(self.region_order)}


def _values_of(name: str, value: Any) -> tuple[int, ...]:
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if not items or any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in items):
        raise UserError(
            f'labels: "{name}" is {value!r}; it must be an integer from 0 on, or a list of them (a region).'
        )
    if len(set(items)) != len(items):
        raise UserError(f'labels: "{name}" names a value twice: {value!r}. Name each once.')
    return tuple(items)


def _ignore_of(entries: Mapping[str, tuple[int, ...]]) -> int | None:
    if "ignore" not in entries:
        return None
    ignore = entries["ignore"]
    highest = max(max(values) for name, values in entries.items() if name != "ignore")
    if len(ignore) != 1 or ignore[0] <= highest:
        raise UserError(f'labels: "ignore" is {list(ignore)} but must be one value above the others: {highest + 1}.')
    return ignore[0]


def _check_unique(names: Sequence[str], values: Sequence[tuple[int, ...]]) -> None:
    owner: dict[int, str] = {}
    for name, (value,) in zip(names, values, strict=True):
        if value in owner:
            raise UserError(f'labels: "{owner[value]}" and "{name}" both have the value {value}. Give each its own.')
        owner[value] = name


def _check_consecutive(label_set: LabelSet) -> None:
    found = label_set.all_values
    if found != tuple(range(len(found))):
        missing = sorted(set(range(found[-1])) - set(found))
        raise UserError(f"labels: values must be consecutive from 0 on; {missing} are not declared. Renumber.")


def _order_of(names: Sequence[str], values: Sequence[tuple[int, ...]], order: Sequence[int] | None) -> tuple[int, ...]:
    if order is None:
        raise UserError("regions_class_order: missing, but there are regions. List one value a region, in their order.")
    if len(order) != len(names):
        raise UserError(f"regions_class_order: has {len(order)} values for {len(names)} regions ({', '.join(names)}).")
    declared = {value for covered in values for value in covered}
    unknown = [value for value in order if value not in declared]
    if unknown:
        raise UserError(f"regions_class_order: {unknown} are not among the values of labels {sorted(declared)}.")
    return tuple(int(value) for value in order)
