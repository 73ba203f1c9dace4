"""The meaning of the values of a label map, as nnU-Net's dataset.json declares it: labels, regions, the ignore label.

Plain labels exclude each other: softmax over one output per label and one for background. A region is an entry of
several values. If there is one, every entry has its own sigmoid output, and `regions_class_order` gives the value that
each of them writes into the final map; later ones overwrite earlier ones.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from umamba.io import UserError
from umamba.settings.wording import shown

MOST_VALUE = 32767  # the largest label value; preprocessed label maps are int16


@dataclass(frozen=True)
class LabelSet:
    """The foreground classes of a dataset.

    Attributes:
        names: foreground names without background and ignore: plain labels in the order of their values, because the
            k-th output of a network stands for the value k (as in nnU-Net); regions in the order of dataset.json.
        values: the label values of each name: one, or several for a region.
        ignore: value of the voxels that loss and scores skip, or None. It is always the highest value.
        region_order: `regions_class_order`, the value that each region writes; None for plain labels.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    ignore: int | None = None
    region_order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse plain labels that are not 1, 2, 3, ... in this order.

        Raises:
            ValueError: they are not.
        """
        ordered = tuple((value,) for value in range(1, len(self.names) + 1))
        if self.region_order is None and self.values != ordered:
            raise ValueError(f"plain labels must have the values 1, 2, 3, ... in this order, not {self.values}")

    @property
    def has_regions(self) -> bool:
        """Whether the outputs may overlap (sigmoid, one per region) instead of excluding each other (softmax)."""
        return self.region_order is not None

    @property
    def num_classes(self) -> int:
        """Number of network outputs: background and the labels, or the regions."""
        return len(self.names) if self.has_regions else len(self.names) + 1

    @property
    def all_values(self) -> tuple[int, ...]:
        """All declared values in ascending order, including 0 and the ignore label."""
        declared = {0}.union(*self.values)
        return tuple(sorted(declared if self.ignore is None else declared | {self.ignore}))

    @property
    def foreground(self) -> tuple[int, ...]:
        """All declared values but 0 and the ignore label, in ascending order; a region's are counted one by one."""
        return tuple(value for value in self.all_values if value not in (0, self.ignore))

    @property
    def num_entries(self) -> int:
        """Number of entries of `labels` in dataset.json, including background and ignore.

        nnU-Net's memory estimate counts these instead of the outputs.
        """
        return len(self.names) + 1 + (self.ignore is not None)

    @classmethod
    def from_json(
        cls, dataset_json_labels: Mapping[str, Any], regions_class_order: Sequence[int] | None = None
    ) -> "LabelSet":
        """Build a label set from a dataset.json, or from the result of `to_json`.

        Args:
            dataset_json_labels: `labels` of the dataset.json, name to value or list of values. Or the result of
                `to_json`, which includes the order of the regions.
            regions_class_order: the entry of that name in the dataset.json; needed if there are regions.

        Raises:
            UserError: background 0 is missing, a value is not a non-negative integer or is used twice, the values are
                not consecutive, `ignore` is not the highest, or the order of the regions does not fit. The message
                names the entry.

        Example:
            >>> organs = LabelSet.from_json({"background": 0, "liver": 1, "spleen": 2})
            >>> organs.names, organs.num_classes
            (('liver', 'spleen'), 3)
            >>> kidney = LabelSet.from_json({"background": 0, "kidney": [1, 2], "tumour": 2}, [1, 2])
            >>> kidney.has_regions, kidney.num_classes
            (True, 2)
        """
        if isinstance(dataset_json_labels, Mapping) and isinstance(dataset_json_labels.get("labels"), Mapping):
            return cls.from_json(dataset_json_labels["labels"], dataset_json_labels.get("regions_class_order"))
        if not isinstance(dataset_json_labels, Mapping) or not dataset_json_labels:
            raise UserError('labels: must be a JSON object like {"background": 0, "liver": 1}.')
        if all(str(name).isdigit() for name in dataset_json_labels):
            raise UserError('labels: the keys are values. Write name: value, like {"background": 0, "liver": 1}.')
        entries = {str(name): _values_of(str(name), value) for name, value in dataset_json_labels.items()}
        if entries.get("background") != (0,):
            raise UserError('labels: "background" must be declared with the value 0. Add "background": 0.')
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
                raise UserError(f'labels: "{name}" includes 0, which is the background. Give it a value of 1 or more.')
        if not has_regions and regions_class_order is not None:
            _check_order(regions_class_order, values)  # nnU-Net ignores it without regions
        order = _order_of(names, values, regions_class_order) if has_regions else None
        _check_consecutive({0}.union(*values, () if ignore is None else (ignore,)))
        if not has_regions:
            names = tuple(sorted(names, key=entries.__getitem__))
            values = tuple(entries[name] for name in names)
        return cls(names, values, ignore, order)

    def to_json(self) -> dict[str, Any]:
        """Return `labels` and `regions_class_order` (None for plain labels) as dataset.json writes them."""
        labels: dict[str, Any] = {"background": 0}
        for name, value in zip(self.names, self.values, strict=True):
            labels[name] = value[0] if len(value) == 1 else list(value)
        if self.ignore is not None:
            labels["ignore"] = self.ignore
        return {"labels": labels, "regions_class_order": None if self.region_order is None else list(self.region_order)}


def _values_of(name: str, value: Any) -> tuple[int, ...]:
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if not items or any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in items):
        found = repr(value[:60]) if isinstance(value, str) else str(value) if value is True else shown(value)
        raise UserError(
            f'labels: "{name}" is {found}; it must be an integer of 0 or more, or a list of them (a region).'
        )
    if max(items) > MOST_VALUE:
        raise UserError(
            f'labels: "{name}" has the value {shown(max(items))}; the largest possible one is {MOST_VALUE}.'
        )
    if len(set(items)) != len(items):
        raise UserError(f'labels: "{name}" lists a value twice: {shown(value)}. List each value once.')
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


def _check_consecutive(found: Set[int]) -> None:
    missing = sorted(set(range(max(found))) - found)
    if missing:
        listed = shown(missing)
        raise UserError(f"labels: the values must be consecutive from 0 on, but {listed} are missing. Renumber them.")


def _order_of(names: Sequence[str], values: Sequence[tuple[int, ...]], order: Sequence[int] | None) -> tuple[int, ...]:
    if order is None:
        raise UserError("regions_class_order: missing, but there are regions. List one value per region, in order.")
    _check_order(order, values)
    if len(order) != len(names):
        raise UserError(
            f"regions_class_order: has {len(order)} values for {len(names)} regions ({shown(', '.join(names))}). List "
            "one value per region, in order."
        )
    return tuple(int(value) for value in order)


def _check_order(order: Any, values: Sequence[tuple[int, ...]]) -> None:
    """Refuse an order of regions that is no list of declared values."""
    if not isinstance(order, list | tuple) or not all(type(value) is int for value in order):
        raise UserError(
            f"regions_class_order={shown(order)}: must be a list of label values, one per region, in order."
        )
    declared = {value for region in values for value in region}
    unknown = [value for value in order if value not in declared]
    if unknown:
        raise UserError(
            f"regions_class_order: {shown(unknown)} are not values of labels. Choose from {shown(sorted(declared))}, "
            "one per region."
        )
