"""List the runs of a study's sweep.yaml with their run folders; each line is composed as by `umamba train`."""

import hashlib
import itertools
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace

from umamba.cli.absent import absent_dataset
from umamba.cli.compose import settings_of
from umamba.io.errors import UserError
from umamba.records import RunFolder
from umamba.records.identity import learnt_settings
from umamba.runs.smoke import smoke_test
from umamba.settings import TrainSettings, plain
from umamba.settings.duration import one_end
from umamba.settings.wording import wrong_choice
from umamba.sweeps import PlannedRun, StudyFile


def planned_runs(study: StudyFile, overrides: tuple[str, ...] = ()) -> list[PlannedRun]:
    """Return the runs of a study: every line of sweep.yaml for every fold and seed.

    Args:
        study: the study.
        overrides: further overrides of every run, such as smoke=true.

    Raises:
        UserError: a line cannot be composed or has no name, two runs share a run folder, or a comparison names a method
            that the study does not have.
    """
    runs = []
    for line in study.runs:
        settings = _settings(study, (*line, *overrides))
        if settings.name is None:
            raise UserError(f"study={study.name}: give the run '{shlex.join(line)}' a name: name=...")
        if settings.finish_by is not None:
            raise UserError(f"study={study.name}: {one_end(settings.finish_by)}")
        if settings.restart:
            raise UserError(
                f"study={study.name}: restart=true would train a run afresh whenever its job is continued, and never "
                "end. Delete the run folders that are to be trained again, or give another paths.runs."
            )
        dataset, method = dataset_and_method(line, settings)
        if settings.smoke:
            settings = smoke_test(settings)
        for fold, seed in itertools.product(study.folds, study.seeds):
            one = replace(settings, fold=fold, seed=seed)
            known = learnt_settings(one)
            del known["batches_per_step"]  # the cluster decides how many processes train
            if one.planner.measure:
                del known["trainer"]  # how the batch is split is measured where the run is trained
            runs.append(
                PlannedRun(
                    overrides=(*line, *overrides, f"fold={fold}", f"seed={seed}"),
                    folder=RunFolder.of(one),
                    dataset=dataset,
                    method=method,
                    fold=fold,
                    seed=seed,
                    max_epochs=one.trainer.max_epochs,
                    batches=one.train_batches + one.val_batches,
                    preparation=preparation(one),
                    learnt=known,
                )
            )
    folders = [run.folder.path for run in runs]
    twice = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
    if twice:
        raise UserError(f"study={study.name}: several runs share {twice[0]}. Give them names of their own: name=...")
    methods = list(dict.fromkeys(run.method for run in runs))
    for name in (name for pair in study.comparisons for name in pair if name not in methods):
        raise UserError(wrong_choice(f"study={study.name}: comparisons", name, methods))
    return runs


def dataset_and_method(line: tuple[str, ...], settings: TrainSettings) -> tuple[str, str]:
    """Return a run's dataset and method as published.csv names them.

    Args:
        line: the run's line of sweep.yaml, as overrides.
        settings: the settings of the run.

    Returns:
        The dataset, from `experiment=<dataset>_...` or the dataset's folder; and the run's name without it.
    """
    chosen = [text.split("=", 1)[1] for text in line if text.startswith("experiment=")]
    dataset = chosen[0].split("_")[0] if chosen else settings.dataset.root.name
    return dataset, str(settings.name).removeprefix(f"{dataset}_")


def preparation(settings: TrainSettings) -> str:
    """Return a hash of all settings that the preprocessed cases depend on.

    Args:
        settings: the settings of a run.
    """
    parts = [plain(settings.dataset), plain(settings.planner), plain(settings.plan), str(settings.paths.preprocessed)]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def absent_datasets(runs: Sequence[PlannedRun]) -> list[str]:
    """Return a sentence for each dataset of the runs that is not there; phantoms are made when they are needed.

    Args:
        runs: the runs.
    """
    one_each = {run.preparation: run for run in runs}.values()
    found = [settings_of(TrainSettings, run.overrides) for run in one_each]
    sentences = map(absent_dataset, found)
    return list(dict.fromkeys(sentence for sentence in sentences if sentence))


def _settings(study: StudyFile, overrides: tuple[str, ...]) -> TrainSettings:
    """Compose a run; a mistake names the study and the run."""
    try:
        return settings_of(TrainSettings, overrides)
    except UserError as error:
        raise UserError(f"study={study.name}, run '{shlex.join(overrides)}': {error}") from error
