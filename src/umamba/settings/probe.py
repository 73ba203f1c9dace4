"""Settings of `umamba probe`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from umamba.settings.architecture import TrustSettings
from umamba.settings.fields import key
from umamba.settings.prediction import device_problem


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(TrustSettings):
    """All keys of `umamba probe`."""

    checkpoint: Path = key(
        sentence="A checkpoint of a run, the folder of a run, or one of nnU-Net or U-Mamba.", existing=True, zoo=True
    )
    images: Path = key(
        sentence="An image, or a folder of images, as for `umamba predict`. One patch of each is used, its middle.",
        existing=True,
    )
    output: Path = key(sentence="Folder of probe.json, two tables and three pictures, made if absent.")
    most: int = key(4, "Images that are used, the first ones in name order. A probe of one is noisy.", low=1)
    steps: int = key(6, "Distances at which a cube of the image is hidden.", low=1, high=64)
    seed: int = key(0, "Seed of the orders in which tokens are shuffled.", low=0)
    device: str = key("auto", "Device of the network: auto, cpu, cuda, cuda:1, ...")

    def conflicts(self) -> Iterator[str]:
        """Yield a device that cannot exist."""
        yield from super().conflicts()
        wrong = device_problem(self.device)
        if wrong:
            yield wrong
