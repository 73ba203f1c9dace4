"""The rules by which segmentations are scored: protocol, labels, tolerances, and the sentence that tells them."""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field

from umamba.evaluation.protocols import ABDOMEN_ORGANS, ENDOSCOPY_TOLERANCE_PX
from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.labels.annotated import Annotated
from umamba.labels.instance_maps import COMPONENTS, WATERSHED
from umamba.settings.dataset import CELL_PROTOCOLS, Protocol

PROTOCOLS: tuple[Protocol, ...] = typing.get_args(Protocol)


@dataclass(frozen=True)
class Rules:
    """The rules by which segmentations are scored.

    Attributes:
        labels: labels of prediction and reference; for abdomen the 13 organs, under any names.
        protocol: generic (nnU-Net's rules), the paper's abdomen, endoscopy or cell, or whole_cells.
        tolerance_mm: tolerance of the generic NSD in mm, one for all labels or one for each name.
        details: generic: also compute HD95, volumes and detected parts.
        strict_official: reproduce the official scripts including their errors; see `protocols` and `instances`.
        iou_threshold: cells: two of them match from this IoU on.
        count_edge_cells: cells: also count cells at the edge of the image.
        annotated: labels that the references of partly labelled cases carry; their other labels have no score (NaN).
        objects: also compute panoptic quality, average precision and (generic) lesion-wise scores of the connected
            parts of each label, or of the cells.

    Raises:
        UserError: an unknown protocol, or labels that do not fit the protocol abdomen.

    >>> Rules(LabelSet(("liver",), ((1,),)), tolerance_mm=3.0).protocol
    'generic'
    """

    labels: LabelSet
    protocol: str = "generic"
    tolerance_mm: float | Mapping[str, float] = 2.0
    details: bool = False
    strict_official: bool = False
    iou_threshold: float = 0.5
    count_edge_cells: bool = False
    annotated: Annotated = field(default_factory=dict, hash=False)
    objects: bool = False

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UserError(f"protocol={self.protocol}: must be one of {', '.join(PROTOCOLS)}.")
        organs = tuple((value,) for value in range(1, len(ABDOMEN_ORGANS) + 1))
        if self.protocol == "abdomen" and self.labels.values != organs:
            raise UserError(
                f"protocol=abdomen: needs the labels {', '.join(name for name, _ in ABDOMEN_ORGANS)} (1 to 13 in this "
                f"order), but the dataset has {', '.join(self.labels.names)}. Use protocol=generic."
            )

    def tolerances(self) -> dict[str, float]:
        """Return the tolerance of each label's NSD in mm (pixels for photographs); none for cells."""
        names, found = self.labels.names, nsd_tolerances(self.protocol, self.tolerance_mm)
        if isinstance(found, Mapping):
            return {name: found[name] for name in names}
        return dict(zip(names, found * (len(names) // max(1, len(found))), strict=True)) if found else {}

    @property
    def grouping(self) -> str:
        """How classes become cells: by their connected interiors as in the paper's script, or by the watershed."""
        return COMPONENTS if self.protocol == "cell" else WATERSHED

    @property
    def of_cells(self) -> bool:
        """Whether numbered cells are scored."""
        return self.protocol in CELL_PROTOCOLS

    @property
    def sentence(self) -> str:
        """The rules in a sentence for a table."""
        if self.of_cells:
            edge = "counted" if self.count_edge_cells else "not counted"
            found = f"Protocol {self.protocol}: match from IoU {self.iou_threshold:g} on, cells at the edge {edge}."
        else:
            found = rules_sentence(self.protocol, self.tolerance_mm)
        return found + (" Scored as the official script does." if self.strict_official else "")


def nsd_tolerances(protocol: str, tolerance_mm: float | Mapping[str, float]) -> list[float] | Mapping[str, float]:
    """Return the tolerances of a protocol: one for all labels, one for each, or none.

    Args:
        protocol: its name.
        tolerance_mm: tolerance of the generic protocol, mm.
    """
    match protocol:
        case "abdomen":
            return [tolerance for _, tolerance in ABDOMEN_ORGANS]
        case "endoscopy":
            return [ENDOSCOPY_TOLERANCE_PX]
        case "cell" | "whole_cells":
            return []
    return tolerance_mm if isinstance(tolerance_mm, Mapping) else [tolerance_mm]


def rules_sentence(protocol: str, tolerance_mm: float | Mapping[str, float]) -> str:
    """Return the protocol and the tolerance of its NSD in a sentence for a table.

    Args:
        protocol: its name.
        tolerance_mm: tolerance of the generic protocol, mm.

    >>> print(rules_sentence("generic", 2.0), rules_sentence("abdomen", 2.0), rules_sentence("cell", 2.0))
    Protocol generic: NSD at 2 mm. Protocol abdomen: NSD at 2 to 7 mm by label. Protocol cell.
    """
    found = nsd_tolerances(protocol, tolerance_mm)
    values = sorted(set(found.values() if isinstance(found, Mapping) else found))
    if not values:
        return f"Protocol {protocol}."
    unit = "pixels" if protocol == "endoscopy" else "mm"
    several = f"{values[0]:g} to {values[-1]:g} {unit} by label" if len(values) > 1 else f"{values[0]:g} {unit}"
    return f"Protocol {protocol}: NSD at {several}."
