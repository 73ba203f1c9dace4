"""Is a training step nnU-Net's, and are the patches? The same batches, weights and optimiser in both programs.

python benchmarks/nnunet_steps.py experiments/baseline_swaps --nnunet-bin ENVIRONMENT/bin \
    paths.raw=RAW paths.preprocessed=PREPROCESSED

ENVIRONMENT has nnunetv2 2.8.1. It makes a network and batches as `nnunet_training.py` trains it, and takes steps at its
first learning rate. We load the same weights, take the same steps on the same batches in float32, and print how far the
losses and the weights are apart. Then the patches of both programs are compared: two-sample Kolmogorov-Smirnov tests of
the mean, deviation, extremes and padding of the image, and of the size and place of each label.
"""

import json
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from measuring import machine
from nnunet_training import CONFIGURATION, SET_UP, nnunet, prepare, study_parser
from scipy.stats import ks_2samp
from torch import Tensor

from umamba.cli.compose import settings_of
from umamba.datasets import read_dataset
from umamba.networks import build_network
from umamba.networks.official_keys import official_state_dict
from umamba.patches import PatchDataModule
from umamba.planning import fold_cases
from umamba.runs.preparation import plan_of, preprocess
from umamba.settings import TrainSettings
from umamba.sweeps import read_study
from umamba.training.losses import DeepSupervisionLoss, build_loss
from umamba.training.schedules import build_optimizer

# Runs in nnU-Net's environment, after SET_UP.
RECORD = (
    SET_UP
    + """
torch.manual_seed(0)
trainer.initialize()
start = {name: values.clone() for name, values in trainer.network.state_dict().items()}
batches = iter(trainer.get_dataloaders()[0])
steps, losses, patches = [], [], []
trainer.network.train()
for number in range(max(given["steps"], given["batches"])):
    batch = next(batches)
    image, label = batch["data"].clone(), batch["target"][0].clone()
    patches.append((image, label.to(torch.uint8)))
    if number < given["steps"]:
        steps.append((image, label))
        losses.append(float(trainer.train_step(batch)["loss"]))
torch.save({"start": start, "end": trainer.network.state_dict(), "steps": steps, "losses": losses, "patches": patches},
           given["output"])
"""
)


def main() -> None:
    """Record nnU-Net's batches, repeat its steps, and compare."""
    parser = study_parser(__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batches", type=int, default=400, help="of each program, whose patches are compared")
    arguments = parser.parse_intermixed_args()  # overrides may stand after the options
    torch.set_num_threads(1)
    study, scratch = read_study(arguments.study.parent, arguments.study.name), arguments.scratch.resolve()
    settings = settings_of(TrainSettings, (*study.runs[0], *arguments.overrides, "data.num_workers=0"))
    planned = plan_of(settings)
    folder = prepare(settings, read_dataset(planned.dataset.root), planned.plan, scratch, arguments.nnunet_bin)
    output = scratch / "steps.pt"
    given = {
        "plans": str(folder / "nnUNetPlans.json"),
        "dataset": str(folder / "dataset.json"),
        "configuration": CONFIGURATION,
        "mirror": settings.augmentation.mirrored_axes(3),
        **{"steps": arguments.steps, "batches": arguments.batches, "output": str(output)},
    }
    nnunet(scratch, arguments.nnunet_bin / "python", "-c", RECORD, json.dumps(given))
    recorded = torch.load(output, weights_only=True)

    network = build_network(
        settings.architecture, planned.configuration, len(planned.dataset.channel_names), planned.labels.num_classes
    )
    network.load_state_dict(official_state_dict(recorded["start"]))
    loss = DeepSupervisionLoss(build_loss(planned.labels, planned.configuration.batch_dice, settings.recipe.loss))
    optimizer = build_optimizer(network.parameters(), settings.recipe.optimizer)
    apart = []
    for (image, label), theirs in zip(recorded["steps"], recorded["losses"], strict=True):
        optimizer.zero_grad(set_to_none=True)
        found: Tensor = loss(network(image), label.long(), None)
        found.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.recipe.gradient_clip_norm or torch.inf)
        optimizer.step()
        apart.append(abs(found.item() - theirs))
    own, end = network.state_dict(), official_state_dict(recorded["end"])
    weights = max(float((own[name] - end[name]).abs().max()) for name in own)
    moved = max(
        float((end[name] - start).abs().max()) for name, start in official_state_dict(recorded["start"]).items()
    )
    print(f"{machine()}\n\n{len(apart)} steps on the same batches: loss {recorded['losses'][0]:.3f} to ", end="")
    print(
        f"{recorded['losses'][-1]:.3f}, at most {max(apart):.1e} apart; weights, which moved by up to {moved:.2f}, ",
        end="",
    )
    print(f"at most {weights:.1e} apart\n\n| of a patch | nnU-Net | ours | p |\n| --- | --- | --- | --- |")
    classes = planned.labels.num_classes
    theirs_ = measured(recorded["patches"], classes)
    ours_ = measured(our_batches(settings, arguments.batches), classes)
    for name in theirs_:
        a, b = (values[name][~np.isnan(values[name])] for values in (theirs_, ours_))
        shown = (f"{values.mean():.3f} ± {values.std():.3f}" for values in (a, b))
        print("| " + " | ".join([name, *shown, f"{ks_2samp(a, b).pvalue:.3f}"]) + " |")


def our_batches(settings: TrainSettings, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, 1, *S) and labels of the training batches of a run."""
    prepared = preprocess(plan_of(settings), settings)
    train, held_out = fold_cases([case.case_id for case in prepared.dataset.training], settings.fold)
    module = PatchDataModule(
        *(prepared.store, prepared.configuration, prepared.labels, train, held_out),
        seed=0,
        augmentation=settings.augmentation,
        iterations=count,
        oversample_foreground=settings.recipe.oversample_foreground,
    )
    for batch in module.train_dataloader():
        yield batch["image"], batch["label"]


def measured(batches: Iterable[tuple[Tensor, Tensor]], classes: int) -> dict[str, np.ndarray]:
    """Return a value of each patch for each quantity; places are NaN where a label is not in the patch."""
    found: dict[str, list[float]] = {}
    for images, labels in batches:
        for image, label in zip(images[:, 0].float().numpy(), labels[:, 0].numpy(), strict=True):
            values = {"mean": image.mean(), "deviation": image.std(), "share of exact zeros": (image == 0).mean()}
            values |= {"lowest": image.min(), "highest": image.max()}
            for value in range(1, classes):
                places = np.argwhere(label == value)
                centre = places.mean(0) if len(places) else np.full(label.ndim, np.nan)
                values[f"voxels of label {value}"] = len(places)
                values |= {f"label {value}, {axis}": where for axis, where in zip("zyx", centre, strict=True)}
            for name, number in values.items():
                found.setdefault(name, []).append(float(number))
    return {name: np.array(values) for name, values in found.items()}


if __name__ == "__main__":
    main()
