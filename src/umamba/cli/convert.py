"""`umamba convert`: a public dataset to nnU-Net's raw layout."""

import logging

from umamba.settings import ConvertSettings

log = logging.getLogger(__name__)


def main(settings: ConvertSettings) -> None:
    """Convert what is not converted yet, and say what is missing.

    Raises:
        UserError: the source is no such archive, or a file cannot be read.
    """
    from umamba.datasets.archives import converter_of
    from umamba.datasets.convert_common import convert
    from umamba.io.resources import available_cpus

    converter = converter_of(settings.archive, crop=settings.crop, videos=settings.videos)
    folder = convert(converter, settings.source, settings.paths.raw, settings.workers or available_cpus())
    log.info("Converted: %s", folder.absolute())
