"""Where images come from: folders in nnU-Net's raw layout with their checks, and the phantom."""

from umamba.datasets.digest import dataset_digest
from umamba.datasets.findings import Finding, findings_table
from umamba.datasets.integrity import Inspection, inspect_case
from umamba.datasets.nnunet_raw import RawCase, RawDataset, list_findings, list_images, read_dataset
from umamba.datasets.parallel import over_cases
from umamba.datasets.phantom import write_phantom
from umamba.datasets.phantom_2d import write_phantom_2d

__all__ = [
    "Finding",
    "Inspection",
    "RawCase",
    "RawDataset",
    "dataset_digest",
    "findings_table",
    "inspect_case",
    "list_findings",
    "list_images",
    "over_cases",
    "read_dataset",
    "write_phantom",
    "write_phantom_2d",
]
