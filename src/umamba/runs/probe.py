"""Probe a trained network: how far it looks, and what its mixer layers have to do with it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from umamba.inference.cases import list_cases
from umamba.inference.checkpoints import find_checkpoints
from umamba.inference.model import Model, choose_device
from umamba.io import UserError, atomic_path, make_folder, read_image, write_json
from umamba.io.voice import tracked
from umamba.networks import probes
from umamba.networks.receptive_field import convolutional_reach
from umamba.planning import Configuration
from umamba.preprocessing import preprocess_case
from umamba.records import read_checkpoint
from umamba.settings import ProbeSettings

log = logging.getLogger(__name__)

SHARES = (0.5, 0.9, 0.99)
NETWORK = "network"


@dataclass
class _Found:
    """What the patches so far showed of the network or of one layer."""

    spacing: tuple[float, ...]
    gradients: list[np.ndarray] = field(default_factory=list)
    hidden: list[probes.Hidden] = field(default_factory=list)
    shuffled: list[float] = field(default_factory=list)

    @property
    def gradient(self) -> np.ndarray:
        """The mean of the gradients, each with the sum 1."""
        return np.mean([each / max(each.sum(), 1e-300) for each in self.gradients], axis=0)  # type: ignore[no-any-return]

    def numbers(self) -> dict[str, Any]:
        """Return the numbers for probe.json."""
        gradient, ones = self.gradient, (1.0,) * len(self.spacing)
        by_distance: dict[float, list[float]] = {}
        for each in self.hidden:
            by_distance.setdefault(round(each.distance, 6), []).append(each.change)
        return {
            "map": list(gradient.shape),
            "spacing_mm": list(self.spacing),
            "radius_vox": {_percent(s): probes.radius_holding(s, gradient, ones) for s in SHARES},
            "radius_mm": {_percent(s): probes.radius_holding(s, gradient, self.spacing) for s in SHARES},
            "change_by_shuffling": float(np.mean(self.shuffled)) if self.shuffled else None,
            "change_by_hiding": [
                {"distance_mm": distance, "change": float(np.mean(changes))}
                for distance, changes in sorted(by_distance.items())
            ],
        }


def probe(settings: ProbeSettings) -> Path:
    """Probe a network on the middle patches of images, and write numbers and pictures.

    Args:
        settings: the checkpoint, the images and the output.

    Returns:
        probe.json.

    Raises:
        UserError: the checkpoint or an image cannot be used, the network is the second stage of a cascade, or the
            folder of a checkpoint holds several.
        StorageError: the output cannot be written.
    """
    files = find_checkpoints([settings.checkpoint])
    if len(files) > 1:
        raise UserError(f"checkpoint={settings.checkpoint}: holds {len(files)} networks. Give the folder of one run.")
    device = choose_device(settings.device)
    model = Model.from_checkpoint(files[0], device, "32-true", settings.trust, engine="torch")
    architecture = read_checkpoint(files[0], settings.trust).record.architecture
    if model.configuration.previous_stage is not None:
        raise UserError(
            f"{files[0]}: is the second stage of a cascade, whose input needs the segmentation of the first, "
            f"{model.configuration.previous_stage}. Probe that one."
        )
    cases = list_cases(settings.images, model.num_channels)[: settings.most]
    make_folder(settings.output)
    network, configuration = model.network.eval(), model.configuration
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    found: dict[str, _Found] = {}
    for case in tracked(cases, "Probing", len(cases)):
        data, _, _ = preprocess_case(
            read_image(case.images, time_is_channels=True), None, model.plan, configuration, model.labels, case.case_id
        )
        patch = middle_patch(torch.from_numpy(data), configuration)[None].to(device)
        _look(network, patch, configuration, settings, found)
    reach = convolutional_reach(architecture, configuration)
    return _write(settings, found, architecture.name, configuration, reach, [case.case_id for case in cases])


def middle_patch(image: Tensor, configuration: Configuration) -> Tensor:
    """Return the middle of an image, filled up with zeros where the image is smaller than the patch.

    Args:
        image: (C, Z, Y, X) along the axes of the plan.
        configuration: its patch size; a 2D one takes the middle slice.

    Returns:
        (C, *patch).
    """
    if configuration.dim == 2:
        image = image[:, image.shape[1] // 2]
    patch = image.new_zeros(len(image), *configuration.patch_size)
    source: list[Any] = [slice(None)]
    target: list[Any] = [slice(None)]
    for here, wanted in zip(image.shape[1:], configuration.patch_size, strict=True):
        size = min(here, wanted)
        source.append(slice((here - size) // 2, (here - size) // 2 + size))
        target.append(slice((wanted - size) // 2, (wanted - size) // 2 + size))
    patch[tuple(target)] = image[tuple(source)]
    return patch


def _look(
    network: nn.Module,
    patch: Tensor,
    configuration: Configuration,
    settings: ProbeSettings,
    found: dict[str, _Found],
) -> None:
    """Add what one patch (1, C, *S) shows."""
    layers, inputs = probes.mixers_of(network), probes.inputs_of(network, patch)
    spacing = configuration.spacing
    all_layers = found.setdefault(NETWORK, _Found(tuple(spacing)))
    all_layers.gradients.append(probes.gradient_map(network, patch))
    all_layers.hidden += probes.hide_cubes(network, patch, spacing, settings.steps)
    if layers:
        all_layers.shuffled.append(probes.change_by_shuffling(network, patch, list(layers.values()), settings.seed))
    for name, layer in layers.items():
        x = inputs[name]
        sizes = zip(spacing, patch.shape[2:], x.shape[2:], strict=True)
        own = found.setdefault(name, _Found(tuple(s * whole / here for s, whole, here in sizes)))
        # A layer has no predicted class, so all of its channels count, with random signs.
        signs = torch.randint(2, (x.shape[1],), generator=torch.Generator().manual_seed(settings.seed)) * 2.0 - 1
        own.gradients.append(probes.gradient_map(layer, x, signs))
        own.hidden += probes.hide_cubes(layer, x, own.spacing, settings.steps)
        own.shuffled.append(probes.change_by_shuffling(network, patch, [layer], settings.seed))


def _write(
    settings: ProbeSettings,
    found: Mapping[str, _Found],
    architecture: str,
    configuration: Configuration,
    reach: Sequence[int] | None,
    cases: Sequence[str],
) -> Path:
    """Write the tables, the pictures and, last, probe.json."""
    import pandas

    from umamba.evaluation.probe_plots import plot_gradients, plot_hidden

    numbers = {name: each.numbers() for name, each in found.items()}
    rows = [
        {
            "part": name,
            **{f"radius_{share}_{unit}": each[f"radius_{unit}"][share] for unit in ("vox", "mm")
               for share in map(_percent, SHARES)},
            "change_by_shuffling": each["change_by_shuffling"],
        }
        for name, each in numbers.items()
    ]  # fmt: skip
    hidden = [{"part": name, **each} for name, part in numbers.items() for each in part["change_by_hiding"]]
    for table, file in ((rows, "radii.csv"), (hidden, "hidden.csv")):
        with atomic_path(settings.output / file) as temporary:
            pandas.DataFrame(table).to_csv(temporary, index=False)
    radii = {name: [each["radius_vox"][_percent(s)] for s in SHARES] for name, each in numbers.items()}
    layers = {name: each.gradient for name, each in found.items() if name != NETWORK}
    plot_gradients({NETWORK: found[NETWORK].gradient}, radii, settings.output / "network.png", reach)
    if layers:
        plot_gradients(layers, radii, settings.output / "layers.png", None)
    else:
        log.info("The network has no mixer layers, so nothing can be said by layer.")
    curves = {name: [tuple(point.values()) for point in each["change_by_hiding"]] for name, each in numbers.items()}
    plot_hidden(curves, settings.output / "hidden.png")
    beyond = None if reach is None else probes.share_beyond(found[NETWORK].gradient, reach)
    content = {
        "checkpoint": str(settings.checkpoint),
        "architecture": architecture,
        "configuration": configuration.name,
        "patches": list(cases),
        "convolutional_reach_vox": None if reach is None else list(reach),
        "gradient_beyond_convolutions": beyond,
        "parts": numbers,
    }
    path = settings.output / "probe.json"
    write_json(path, content)
    return path


def _percent(share: float) -> str:
    return f"{100 * share:g}"
