"""Sources of images: datasets in nnU-Net's raw layout with their checks, converters of public archives, phantoms.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from umamba.io.lazy import lazy_names

if TYPE_CHECKING:
    from umamba.datasets.declared import READERS, REORIENTING_READER
    from umamba.datasets.digest import dataset_digest
    from umamba.datasets.findings import Finding, findings_table
    from umamba.datasets.integrity import Inspection, inspect_case, unseen_labels
    from umamba.datasets.nnunet_raw import CHANNEL_NAME, FIRST_CHANNEL, RawCase, RawDataset, list_findings, read_dataset
    from umamba.datasets.parallel import over_cases
    from umamba.datasets.phantom import write_phantom
    from umamba.datasets.phantom_2d import write_phantom_2d
    from umamba.datasets.twins import same_images, voxel_digest

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "declared": (
            "READERS",
            "REORIENTING_READER",
        ),
        "digest": ("dataset_digest",),
        "findings": (
            "Finding",
            "findings_table",
        ),
        "integrity": (
            "Inspection",
            "inspect_case",
            "unseen_labels",
        ),
        "nnunet_raw": (
            "CHANNEL_NAME",
            "FIRST_CHANNEL",
            "RawCase",
            "RawDataset",
            "list_findings",
            "read_dataset",
        ),
        "parallel": ("over_cases",),
        "phantom": ("write_phantom",),
        "phantom_2d": ("write_phantom_2d",),
        "twins": (
            "same_images",
            "voxel_digest",
        ),
    },
)

__all__ = [
    "CHANNEL_NAME",
    "FIRST_CHANNEL",
    "READERS",
    "REORIENTING_READER",
    "Finding",
    "Inspection",
    "RawCase",
    "RawDataset",
    "dataset_digest",
    "findings_table",
    "inspect_case",
    "list_findings",
    "over_cases",
    "read_dataset",
    "same_images",
    "unseen_labels",
    "voxel_digest",
    "write_phantom",
    "write_phantom_2d",
]
