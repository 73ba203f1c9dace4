"""Crop, normalise and resample cases, and store the preprocessed cases on disk.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from umamba.io.lazy import lazy_names

if TYPE_CHECKING:
    from umamba.preprocessing.case import CaseProperties, preprocess_case
    from umamba.preprocessing.resample import resample_image, resample_label
    from umamba.preprocessing.store import CaseStore, StoredCase, open_store, prepare_store

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "case": (
            "CaseProperties",
            "preprocess_case",
        ),
        "resample": (
            "resample_image",
            "resample_label",
        ),
        "store": (
            "CaseStore",
            "StoredCase",
            "open_store",
            "prepare_store",
        ),
    },
)

__all__ = [
    "CaseProperties",
    "CaseStore",
    "StoredCase",
    "open_store",
    "prepare_store",
    "preprocess_case",
    "resample_image",
    "resample_label",
]
