"""The defaults of the commands beside training, written by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from umamba.settings import (
    AuditSettings,
    CalibrateSettings,
    ConvertSettings,
    EvaluateSettings,
    ExportSettings,
    FindBestSettings,
    PowerSettings,
    PredictSettings,
    ProbeSettings,
    ReportSettings,
    SlurmSettings,
    VerifySettings,
    plain,
)

PATHS = {"raw": "data/raw", "preprocessed": "data/preprocessed", "runs": "runs"}


def test_the_defaults_of_the_other_commands(composed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    here = str(tmp_path)
    sliding = {"tile_step_size": 0.5, "tta": False}
    assert composed(PredictSettings, f"checkpoint={here}", f"input={here}", "output=out") == {
        **sliding,
        "max_memory_gb": None,
        "probabilities": False,
        "instances": None,
        "export": [],
        "agreement": False,
        "codes": None,
        "previous_stage": None,
        "overwrite": False,
        "workers": 2,
        "engine": "auto",
        "tile_scale": 1,
        "device": "auto",
        "trust": [],
        "checkpoint": here,
        "input": here,
        "output": "out",
        "previews": 8,
        "quality": None,
        "review_below": None,
        "post_processing": None,
        "previous_checkpoint": None,
        "precision": "auto",
        "reproducible": False,
    }
    assert composed(VerifySettings, f"predictions={here}") == {
        "trust": [],
        "predictions": here,
        "checkpoint": None,
        "input": None,
        "device": "auto",
        "engine": "auto",
        "max_memory_gb": None,
    }
    assert composed(FindBestSettings, f"candidates=[{here}]", f"raw_dataset={here}", "output=out") == {
        **sliding,
        "engine": "auto",
        "tile_scale": 1,
        "device": "auto",
        "trust": [],
        "candidates": [here],
        "raw_dataset": here,
        "output": "out",
        "splits": None,
        "pairs": True,
        "checkpoint": "last",
        "seed": 0,
        "previous_stage": None,
        "max_memory_gb": None,
        "workers": 2,
    }
    assert composed(AuditSettings, f"runs={here}", f"raw_dataset={here}", "output=out") == {
        "runs": here,
        "raw_dataset": here,
        "output": "out",
        "review_from": 4.0,
        "pictures_mb": 8.0,
        "workers": None,
    }
    assert composed(CalibrateSettings, f"candidates=[{here}]", f"raw_dataset={here}", "output=out") == {
        **sliding,
        "engine": "auto",
        "tile_scale": 1,
        "device": "auto",
        "trust": [],
        "candidates": [here],
        "raw_dataset": here,
        "splits": None,
        "seeds": [0],
        "which": "last",
        "checkpoint": None,
        "images": None,
        "labels": None,
        "output": "out",
        "coverage": 0.9,
        "tolerance_mm": 2.0,
        "max_memory_gb": None,
        "workers": 2,
    }
    assert composed(EvaluateSettings, f"predictions={here}", f"truth={here}", "output=out") == {
        "predictions": here,
        "truth": here,
        "output": "out",
        "protocol": "generic",
        "strict_official": False,
        "dataset_json": None,
        "tolerance_mm": 2.0,
        "iou_threshold": 0.5,
        "count_edge_cells": False,
        "objects": False,
        "images": None,
        "classes": None,
        "margin": 0.01,
        "workers": None,
    }
    assert composed(ReportSettings, "study=folds") == {
        "study": "folds",
        "output": None,
        "overrides": [],
        "margin": 0.01,
        "images": "test",
        "pictures_mb": 3.0,
        "paths": PATHS,
    }
    assert composed(ConvertSettings, "archive=flare", f"source={here}") == {
        "archive": "flare",
        "source": here,
        "name": None,
        "channels": [],
        "label": None,
        "labels": [],
        "datasets": [],
        "crop": False,
        "videos": "separate",
        "workers": None,
        "paths": PATHS,
    }
    assert composed(ExportSettings, f"checkpoint={here}", "output=out") == {
        "checkpoint": here,
        "output": "out",
        "format": "nnunet",
        "fold": 0,
        "segmentation_only": False,
        "post_processing": None,
        "trust": [],
    }
    assert composed(ProbeSettings, f"checkpoint={here}", f"images={here}", "output=out") == {
        "trust": [],
        "checkpoint": here,
        "images": here,
        "output": "out",
        "most": 4,
        "steps": 6,
        "seed": 0,
        "device": "auto",
    }
    assert plain(PowerSettings()) == {
        "results": None,
        "case_sd": 0.08,
        "correlation": 0.8,
        "training_sd": 0.005,
        "cases": None,
        "trainings": None,
        "difference": 0.01,
        "power": 0.8,
    }
    assert plain(SlurmSettings()) == {
        "partition": None,
        "prepare_partition": None,
        "nodes": 1,
        "gpus": 1,
        "cpus": 13,
        "memory_gb": 32,
        "time_limit": "24:00:00",
        "max_parallel": 8,
        "warn_s": 120,
        "extra": [],
    }
