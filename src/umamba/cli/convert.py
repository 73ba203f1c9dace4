"""`umamba convert`: convert a public dataset to nnU-Net's raw layout."""

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
    from umamba.datasets.archives import converter_of
    from umamba.datasets.convert_common import convert
    from umamba.io.resources import available_cpus

    converter = converter_of(settings.archive, crop=settings.crop, videos=settings.videos)
    folder = convert(converter, settings.source, settings.paths.raw, settings.workers or available_cpus())
    log.info("Converted: %s", folder.absolute())
