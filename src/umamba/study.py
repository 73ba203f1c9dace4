"""From a study's sweep.yaml to its runs with their folders: each line is composed as `train.py` would compose it."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from umamba.config import TrainConfig
from umamba.entry import composed, typed
from umamba.io import UserError
from umamba.smoke import smoke_test
from umamba.sweeps import PlannedRun, StudyFile


def project_folder() -> Path:
    """Return the checkout that holds train.py, configs and experiments.

    Raises:
        UserError: the package is installed without them.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "train.py").is_file():
        raise UserError(f"{root} holds no train.py. Install the checkout itself: pip install -e FOLDER.")
    return root


def planned_runs(study: StudyFile, overrides: tuple[str, ...] = ()) -> list[PlannedRun]:
    """Return the runs of a study, every line for every fold and seed.

    Args:
        study: the study.
        overrides: further overrides of every run, such as +smoke=true.

    Raises:
        UserError: a line cannot be composed, or two lines share a run folder.
    """
    runs = []
    for line in study.runs:
        config = _config(study, (*line, *overrides))
        if config.name is None:
            raise UserError(f"study={study.name}: give the run '{' '.join(line)}' a name: name=...")
        dataset, method = dataset_and_method(line, config)
        if config.smoke:
            config = smoke_test(config)
        batches = sum(
            _batches(own, config.trainer.get(limit))
            for own, limit in (
                (config.data.iterations_per_epoch, "limit_train_batches"),
                (config.data.val_iterations, "limit_val_batches"),
            )
        )
        for fold in study.folds:
            for seed in study.seeds:
                folder = Path(config.paths.runs, str(config.name), str(config.plan.configuration))
                runs.append(
                    PlannedRun(
                        overrides=(*line, *overrides, f"fold={fold}", f"seed={seed}"),
                        folder=folder / f"fold_{fold}" / f"seed_{seed}",
                        dataset=dataset,
                        method=method,
                        fold=fold,
                        seed=seed,
                        max_epochs=int(config.trainer["max_epochs"]),
                        batches=batches,
                        preparation=_preparation(config),
                    )
                )
    folders = [run.folder for run in runs]
    twice = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
    if twice:
        raise UserError(f"study={study.name}: several runs share {twice[0]}. Give them names of their own: name=...")
    return runs


def dataset_and_method(line: tuple[str, ...], config: TrainConfig) -> tuple[str, str]:
    """Return a run's dataset and method as published.csv names them; a variant's method is the rest of its name."""
    chosen = [text.split("=", 1)[1] for text in line if text.startswith("experiment=")]
    dataset = chosen[0].split("_")[0] if chosen else Path(config.dataset.root).name
    return dataset, str(config.name).removeprefix(f"{dataset}_")


def _config(study: StudyFile, overrides: tuple[str, ...]) -> TrainConfig:
    try:
        return typed(composed(list(overrides), "train", project_folder() / "configs"), TrainConfig)
    except UserError as error:
        raise UserError(f"study={study.name}, run '{' '.join(overrides)}': {error}") from error


def _batches(own: int, limit: int | float | None) -> int:
    if limit is None:
        return own
    return min(own, limit) if isinstance(limit, int) else max(1, round(own * limit))


def _preparation(config: TrainConfig) -> str:
    """Return a hash of all that the preprocessed cases depend on."""
    parts = [asdict(config.dataset), asdict(config.planner), asdict(config.plan), config.paths.preprocessed]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()
