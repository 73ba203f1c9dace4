"""Pretrain a network on images without labels: list and prepare them, and let it reconstruct what is hidden."""

import logging
from dataclasses import replace
from pathlib import Path

from umamba.datasets import RawCase, RawDataset, dataset_digest
from umamba.inference.cases import list_cases
from umamba.io import UserError
from umamba.io.resources import available_cpus
from umamba.io.tiff_spacing import spacing_file
from umamba.io.voice import shown
from umamba.preprocessing import prepare_store
from umamba.records import RunFolder
from umamba.records.begin import begin, check_same_run
from umamba.records.identity import early_stopping
from umamba.runs.cases import TRAINING, run_cases
from umamba.runs.checks import check_network
from umamba.runs.fit import fit
from umamba.runs.identity import checkpoint_record, run_identity
from umamba.runs.preparation import PlannedDataset, PreparedDataset, plan_of
from umamba.runs.smoke import smoke_test
from umamba.runs.trainer import check_trainer, is_first_process, processes
from umamba.runs.whole_run import alone, completed
from umamba.settings import PretrainSettings
from umamba.training.loggers import close_loggers
from umamba.training.masking import block_size
from umamba.training.notice import send_notice

log = logging.getLogger(__name__)

TEST = "imagesTs_"  # begins the names of the dataset's test images


def pretrain(settings: PretrainSettings, *, progress: bool = True) -> RunFolder:
    """Pretrain one network on the images of a dataset, without their labels.

    The run folder follows from the settings, and an interrupted run continues, as in `umamba.runs.train`. The last
    checkpoint is the start of a training with `pretrained`.

    Args:
        settings: the settings of the run.
        progress: print messages and show progress bars.

    Returns:
        The run folder.

    Raises:
        UserError: a mistake in the dataset or the settings; the run folder is in use, or holds another run.
    """
    with shown(progress):
        if settings.smoke:
            settings = smoke_test(settings)
        if settings.trainer.dry_run:
            settings = replace(settings, restart=True)
        check_trainer(settings)
        folder = RunFolder.of(settings)
        if not settings.restart:
            folder.status()  # a damaged run.json is refused before any work
        planned = plan_of(settings)
        check_network(settings, planned)
        block_size(settings.masking, planned.configuration)  # refuses blocks as large as the patch
        images = without_labels(settings, planned)
        run_cases(settings, images)  # refuses a fold that there is not, before the preparation
        prepared = prepare_images(settings, images)
        with alone(folder, settings, is_first_process()):
            return _run(settings, prepared, folder)


def without_labels(settings: PretrainSettings, planned: PlannedDataset) -> PlannedDataset:
    """Return the images of a dataset, and further ones, as training cases without labels.

    Args:
        settings: `test_images` and `images` are read.
        planned: the dataset, with its plan.

    Raises:
        UserError: a folder holds no images, or images that are already there, or an image lacks a channel.
    """
    dataset = planned.dataset
    cases = [replace(case, case_id=TRAINING + case.case_id, label=None) for case in dataset.training]
    if settings.test_images:
        cases += [replace(case, case_id=TEST + case.case_id, label=None) for case in dataset.test]
    names: dict[Path, str] = {}  # of images that may lie elsewhere on another machine
    for number, folder in enumerate(path.absolute() for path in settings.images):
        for part in image_folders(folder):
            name = f"images{number}_" if part == folder else f"images{number}{part.name.removeprefix('images')}_"
            found = list_cases(part, planned.num_channels)
            cases += [replace(case, case_id=name + case.case_id) for case in found]
            files = [path for case in found for path in case.images]
            files += [beside for beside in map(spacing_file, files) if beside is not None]
            names |= {path: f"{name}/{path.name}" for path in files}
    _refuse_twice(dataset, cases)
    cases.sort(key=lambda case: case.case_id)
    images = replace(dataset, training=tuple(cases), test=(), num_training=len(cases), annotated={})
    digest = dataset_digest(images, settings.paths.preprocessed / dataset.name / "images.json", names=names)
    return replace(planned, dataset=images, digest=digest)


def image_folders(folder: Path) -> list[Path]:
    """Return the folders of images of a raw dataset; another folder holds the images itself.

    Args:
        folder: the folder.
    """
    parts = [folder / name for name in ("imagesTr", "imagesTs")]
    return [part for part in parts if part.is_dir()] or [folder]


def _refuse_twice(dataset: RawDataset, cases: list[RawCase]) -> None:
    """Refuse an image that is listed twice, because it could be held out and learnt at once."""
    seen: set[Path] = set()
    for path in (path for case in cases for path in case.images):
        if path.resolve() in seen:
            raise UserError(
                f"images: {path} is listed twice. The images of {dataset.root} are learnt anyway; give other folders."
            )
        seen.add(path.resolve())


def prepare_images(settings: PretrainSettings, images: PlannedDataset) -> PreparedDataset:
    """Preprocess images without labels; only missing ones are made.

    Args:
        settings: `paths.preprocessed` says where they are, `data.prepare_workers` how many processes work.
        images: from `without_labels`.

    Raises:
        UserError: an image cannot be preprocessed.
    """
    store = prepare_store(
        images.dataset,
        images.digest,
        images.plan,
        images.configuration.name,
        settings.paths.preprocessed,
        settings.data.prepare_workers or available_cpus(),
        settings.data.check_store,
        labelled=False,
    )
    return PreparedDataset(images.dataset, images.digest, images.plan, images.configuration, images.findings, store)


def _run(settings: PretrainSettings, prepared: PreparedDataset, folder: RunFolder) -> RunFolder:
    """Train in the run folder, which is locked."""
    first, record = is_first_process(), checkpoint_record(settings, prepared)
    identity = run_identity(settings, prepared, record)
    asked = (settings.trainer.max_epochs, settings.trainer.max_seconds, early_stopping(settings))
    if first:
        check_same_run(folder, identity, settings, processes(settings))
    if not settings.restart and folder.is_finished(*asked):
        log.info("This pretraining is finished: %s. Train it again with restart=true.", folder.path)
        return folder
    if first:
        begin(folder, identity, settings, completed(folder, settings), processes(settings))
    try:
        loggers = fit(settings, prepared, folder, record)
    except Exception as error:
        if first:
            send_notice(settings.logger, "failed", folder.path, str(error).strip().split("\n")[0])
        raise
    if first:
        folder.set_status(state="finished")
        log.info("Pretrained: %s. Fine-tune it with umamba train pretrained=%s", folder.path, folder.last)
        send_notice(settings.logger, "finished", folder.path, "Pretrained")
        close_loggers(loggers)
    return folder
