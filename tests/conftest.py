"""Fixtures that several rooms' tests share."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # Triton's kernels then run in its interpreter; it reads this when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def project_dir() -> Path:
    """Return the root of the checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Return the folder of reference data that travels with the project."""
    return PROJECT / "tests" / "reference"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Return the folder of large reference data beside the checkout (`UMAMBA_SHARED` overrides it); skip without it."""
    folder = Path(os.environ.get("UMAMBA_SHARED", PROJECT.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip("needs the shared reference folder beside the checkout")
    return folder
