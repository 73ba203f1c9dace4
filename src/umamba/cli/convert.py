"""`umamba convert`: convert a public dataset, or one in another layout, to nnU-Net's raw layout."""

import logging

from umamba.settings import ConvertSettings

log = logging.getLogger(__name__)


def main(settings: ConvertSettings) -> None:
    """Convert the cases that are not converted yet, and report which are missing.

    Args:
        settings: the archive, its folder, and where the dataset is written.

    Raises:
        UserError: the source does not hold this archive, or a file cannot be read.
    """
    from umamba.datasets.archives import convert_archive
    from umamba.datasets.convert_patients import Layout
    from umamba.io.resources import available_cpus

    folder = convert_archive(
        settings.archive,
        settings.source,
        settings.paths.raw,
        settings.workers or available_cpus(),
        layout=Layout(settings.name, settings.channels, settings.label, settings.labels),
        crop=settings.crop,
        videos=settings.videos,
        datasets=settings.datasets,
    )
    log.info("Converted: %s", folder.absolute())
