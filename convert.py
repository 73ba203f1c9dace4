"""Convert a public data set, as it is downloaded and unpacked, to nnU-Net's raw layout.

python convert.py archive=flare source=FOLDER      # flare, amos, endovis or cell
"""

from pathlib import Path

from omegaconf import DictConfig

from umamba.config import ConvertConfig
from umamba.entry import launch, typed
from umamba.io import UserError


def main(composed: DictConfig) -> None:
    """Convert what is not converted yet, and say what is missing."""
    config = typed(composed, ConvertConfig)
    from umamba.datasets.convert_abdomen import AMOS, FLARE
    from umamba.datasets.convert_cell import CELL
    from umamba.datasets.convert_common import convert
    from umamba.datasets.convert_endovis import endovis
    from umamba.io.resources import available_cpus

    converters = {"flare": FLARE, "amos": AMOS, "endovis": endovis(config.crop), "cell": CELL}
    if config.archive not in converters:
        raise UserError(f"archive={config.archive} has no converter. Choose one of {', '.join(converters)}.")
    workers = config.workers or available_cpus()
    folder = convert(converters[config.archive], Path(config.source), Path(config.paths.raw), workers)
    print(f"Converted: {folder.absolute()}")


if __name__ == "__main__":
    launch(main, "convert", Path(__file__).parent / "configs")
