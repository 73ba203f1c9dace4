"""Convert a public data set, as it is downloaded and unpacked, to nnU-Net's raw layout.

python convert.py archive=flare source=FOLDER      # flare, amos, endovis or cell
"""

from pathlib import Path

from omegaconf import DictConfig

from umamba.config import ConvertConfig
from umamba.entry import launch, typed


def main(composed: DictConfig) -> None:
    """Convert what is not converted yet, and say what is missing."""
    config = typed(composed, ConvertConfig)
    from umamba.datasets.archives import converter_of
    from umamba.datasets.convert_common import convert
    from umamba.io.resources import available_cpus

    converter = converter_of(config.archive, crop=config.crop, videos=config.videos)
    folder = convert(converter, Path(config.source), Path(config.paths.raw), config.workers or available_cpus())
    print(f"Converted: {folder.absolute()}")


if __name__ == "__main__":
    launch(main, "convert", Path(__file__).parent / "configs")
