"""Crop, normalise and resample cases, and store the preprocessed cases on disk."""

from umamba.preprocessing.case import CaseProperties, preprocess_case
from umamba.preprocessing.resample import resample_image, resample_label
from umamba.preprocessing.store import CaseStore, StoredCase, open_store, prepare_store

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
