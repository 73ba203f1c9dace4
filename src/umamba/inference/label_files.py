"""Names and colours of labels in the forms that ITK-SNAP and 3D Slicer read beside a label map.

ITK-SNAP: Segmentation > Import Label Descriptions; a line has value, red, green, blue, opacity, visible in slices,
visible in 3D, and the name in quotes. Slicer: a colour table (.ctbl), which is loaded with the volume; a line has
value, name without spaces (an underscore is shown as a space), red, green, blue and opacity from 0 to 255.
"""

from dataclasses import dataclass
from pathlib import Path

from umamba.io import atomic_path, storage_errors
from umamba.io.escape import printable
from umamba.labels import LabelSet, colours


@dataclass(frozen=True)
class Entry:
    """One value of a label map.

    Attributes:
        value: the value.
        name: its name, without line breaks and characters that cannot be seen.
        colour: red, green and blue from 0 to 255.
    """

    value: int
    name: str
    colour: tuple[int, int, int]


def label_entries(labels: LabelSet) -> list[Entry]:
    """Return names and colours of the values that a label map can hold, in ascending order, without background.

    A value of a label map with regions lies in one region or more, whose names are joined by a plus. It has the colour
    of the region that paints it.

    Args:
        labels: the label set.

    >>> regions = LabelSet(("whole", "core"), ((1, 2), (2,)), region_order=(1, 2))
    >>> [(entry.value, entry.name) for entry in label_entries(regions)]
    [(1, 'whole'), (2, 'whole + core')]
    """
    table = [(int(red), int(green), int(blue)) for red, green, blue in colours(len(labels.names))]
    entries = []
    for value in labels.all_values:
        members = [index for index, values in enumerate(labels.values) if value in values]
        if value in (0, labels.ignore) or not members:
            continue
        painters = [index for index in members if labels.region_order and labels.region_order[index] == value]
        name = " + ".join(printable(" ".join(labels.names[index].split())) for index in members)
        entries.append(Entry(value, name or f"label {value}", table[(painters or members)[-1]]))
    return entries


def itksnap_text(labels: LabelSet) -> str:
    """Return ITK-SNAP's label description.

    Args:
        labels: the label set.

    >>> print(itksnap_text(LabelSet(("liver",), ((1,),))).splitlines()[2].split()[-1])
    "liver"
    """
    lines = ["# Label description for ITK-SNAP: value, red, green, blue, opacity, in slices, in 3D, name"]
    lines.append('0 0 0 0 0 0 0 "background"')
    for entry in label_entries(labels):
        name = entry.name.replace('"', "'")  # the format has no quotes inside a name
        lines.append(f'{entry.value} {" ".join(map(str, entry.colour))} 1 1 1 "{name}"')
    return "\n".join(lines) + "\n"


def slicer_text(labels: LabelSet) -> str:
    """Return 3D Slicer's colour table.

    Args:
        labels: the label set.

    >>> slicer_text(LabelSet(("left kidney",), ((1,),))).splitlines()[2].split()[1]
    'left_kidney'
    """
    entries = label_entries(labels)
    lines = ["# Colour table for 3D Slicer: value, name, red, green, blue, opacity", "0 background 0 0 0 0"]
    lines += [f"{each.value} {each.name.replace(' ', '_')} {' '.join(map(str, each.colour))} 255" for each in entries]
    return "\n".join(lines) + "\n"


def write_label_files(itksnap: Path, slicer: Path, labels: LabelSet) -> None:
    """Write both files.

    Args:
        itksnap: the label description.
        slicer: the colour table.
        labels: the label set.

    Raises:
        StorageError: they cannot be written.
    """
    for path, text in ((itksnap, itksnap_text(labels)), (slicer, slicer_text(labels))):
        with storage_errors(path), atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
