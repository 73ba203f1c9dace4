"""The program `umamba`: find the command, compose its settings and run it; a user's mistake ends in one message.

`python train.py ...` equals `umamba train ...`, and the same holds for the other scripts.
"""

import atexit
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

from umamba import __version__
from umamba.io.errors import UserError, disk_error, lack_of_memory

EXIT_NO_MEMORY = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # what a shell says of a program that Ctrl-C (signal 2) ended
EXIT_CLOSED_PIPE = 141  # what a shell says of a program that the signal of a closed pipe (13) ended
_HELP = ("-h", "--help", "help")


@dataclass(frozen=True)
class Command:
    """One command of the program.

    Attributes:
        module: name of the module in `umamba.cli` whose `main` runs the command.
        sentence: what the command does.
        record: name of its settings record in `umamba.settings`; None: its `main` reads the arguments itself.
        examples: command lines without the program's name.
        first: key whose value may be the first word, without `key=`; None: there is none.
        memory: keys whose lower values need less memory.
    """

    module: str
    sentence: str
    record: str | None
    examples: tuple[str, ...]
    first: str | None = None
    memory: tuple[str, ...] = ()


_TRAINING_MEMORY = ("plan.batch_size", "plan.patch_size", "data.num_workers", "data.prepare_workers")
_PREDICTION_MEMORY = ("max_memory_gb", "workers")
COMMANDS = {
    "train": Command(
        "train",
        "Train one network on one dataset, then predict, score and draw its test images.",
        "TrainSettings",
        (
            "train experiment=quickstart                            # the embedded phantom, minutes on a laptop",
            "train dataset.root=PATH architecture=umamba_enc        # any folder in nnU-Net's raw layout",
            "train -m experiment=hippocampus_umamba_bot fold=0,1,2,3,4",
        ),
        memory=_TRAINING_MEMORY,
    ),
    "pretrain": Command(
        "pretrain",
        "Pretrain a network on images without labels: it reconstructs hidden parts of them; train then starts from it.",
        "PretrainSettings",
        (
            "pretrain dataset.root=PATH architecture=unet augmentation=spatial name=before",
            "train dataset.root=PATH architecture=unet pretrained=run:before recipe=finetune",
        ),
        memory=_TRAINING_MEMORY,
    ),
    "prepare": Command(
        "prepare",
        "Prepare a dataset without training: fingerprint, plan, preprocessed cases.",
        "PrepareSettings",
        ("prepare dataset.root=PATH plan=3d_fullres explain=true",),
        memory=("data.prepare_workers",),
    ),
    "predict": Command(
        "predict",
        "Segment images with one checkpoint, or with the mean of several.",
        "PredictSettings",
        ("predict checkpoint=runs/NAME/3d_fullres/fold_0/seed_0/checkpoints/last.ckpt input=IMAGES output=DIR",),
        memory=_PREDICTION_MEMORY,
    ),
    "verify": Command(
        "verify",
        "Repeat the segmentations of a folder and say of each whether it is what prediction.json says.",
        "VerifySettings",
        ("verify DIR", "verify DIR checkpoint=last.ckpt input=IMAGES              # if they were moved"),
        first="predictions",
        memory=("max_memory_gb",),
    ),
    "evaluate": Command(
        "evaluate",
        "Score folders of segmentations: tables, confidence intervals, tests between methods, pictures.",
        "EvaluateSettings",
        (
            "evaluate predictions=DIR truth=DIR output=DIR protocol=generic",
            "evaluate predictions='{umamba:DIR,unet:DIR}' truth=DIR output=DIR",
        ),
        memory=("workers",),
    ),
    "report": Command(
        "report",
        "Write the report of a study: one HTML file that works offline, and tables in CSV, Markdown and LaTeX.",
        "ReportSettings",
        ("report study=table3_organs_3d",),
    ),
    "convert": Command(
        "convert",
        "Convert a public dataset, or your own in another layout, to nnU-Net's raw layout.",
        "ConvertSettings",
        (
            "convert archive=flare source=FOLDER                    # an unpacked download",
            "convert archive=msd source=Task04_Hippocampus",
            "convert archive=folders source=FOLDER name=Dataset500_Mine    # a folder for each patient",
            "convert merge source=PATH/raw datasets=[Dataset001_A,Dataset002_B] name=Dataset700_Joined",
        ),
        first="archive",
        memory=("workers",),
    ),
    "find-best": Command(
        "find_best",
        "Choose the best of several trained configurations by cross-validation, and its post-processing.",
        "FindBestSettings",
        ("find-best candidates=[runs/A/3d_fullres,runs/B/3d_fullres] raw_dataset=PATH/Dataset701_NAME output=DIR",),
        memory=_PREDICTION_MEMORY,
    ),
    "audit": Command(
        "audit",
        "Rank the cases, parts and slices of a training set that are probably labelled wrongly, by cross-validation.",
        "AuditSettings",
        ("audit runs=runs/NAME/3d_fullres raw_dataset=PATH/Dataset701_NAME output=DIR",),
        memory=("workers",),
    ),
    "calibrate": Command(
        "calibrate",
        "Learn from scored cases how far to trust a segmentation; predict then gives each an expected DSC.",
        "CalibrateSettings",
        (
            "calibrate candidates=[runs/A/3d_fullres] raw_dataset=PATH/Dataset701_NAME output=DIR    # held-out folds",
            "calibrate checkpoint=[a.ckpt,b.ckpt] images=IMAGES labels=LABELS output=DIR",
            "predict checkpoint=a.ckpt input=IMAGES output=DIR quality=DIR/quality.json",
        ),
        memory=_PREDICTION_MEMORY,
    ),
    "describe": Command(
        "describe",
        "Describe a network at a plan, stage by stage: maps, tokens, parameters, FLOPs, memory, paper against code.",
        "DescribeSettings",
        (
            "describe experiment=flare_umamba_enc",
            "describe architecture=unet plan.from_file=nnUNetPlans.json num_classes=14",
            "describe checkpoint=runs/NAME/3d_fullres/fold_0/seed_0/checkpoints/last.ckpt",
        ),
        memory=("plan.batch_size", "plan.patch_size"),
    ),
    "check-backbone": Command(
        "check_backbone",
        "Check a backbone, such as your own: 2D, 3D, odd sizes, gradients, autocast, compile, weights, memory.",
        None,
        (
            "check-backbone mypackage.networks:build width=16",
            "check-backbone umamba_enc --dim=3",
        ),
    ),
    "probe": Command(
        "probe",
        "Show how far a trained network looks, by layer: gradients, shuffled tokens, hidden parts of the image.",
        "ProbeSettings",
        ("probe checkpoint=runs/NAME/3d_fullres/fold_0/seed_0/checkpoints/last.ckpt images=IMAGES output=DIR",),
    ),
    "export": Command(
        "export",
        "Export a trained U-Net (unet, resenc_unet) for nnU-Net, or any network to a file to give away or to ONNX.",
        "ExportSettings",
        (
            "export checkpoint=runs/NAME/3d_fullres/fold_0/seed_0/checkpoints/last.ckpt output=DIR",
            "export checkpoint=runs/NAME/3d_fullres/fold_0/seed_0/checkpoints/last.ckpt output=NAME.ckpt format=share",
            "export checkpoint=runs/NAME/3d_fullres/fold_0/seed_0/checkpoints/last.ckpt output=DIR format=onnx",
        ),
    ),
    "study": Command(
        "study",
        "List the studies, show the state of each run of a study, train them, or plan what a study can show.",
        None,
        (
            "study                                                 # all studies",
            "study table3_organs_3d",
            "study run controls_nuclei                             # train what is left, one run after another",
            "study power table3_organs_3d power.cases=50 power.trainings=3    # before anything is trained",
        ),
    ),
    "slurm": Command(
        "slurm",
        "Submit the remaining runs of a study to a SLURM cluster, or check the request before.",
        None,
        (
            "slurm preflight table3_organs_3d slurm.partition=gpu",
            "slurm submit table3_organs_3d slurm.partition=gpu slurm.max_parallel=4",
            "slurm dry-run table3_organs_3d smoke=true slurm.gpus=0",
        ),
    ),
    "doctor": Command(
        "doctor",
        "Test this machine: versions, devices, scan backends, and the commands that repair what does not work.",
        None,
        ("doctor",),
    ),
    "completion": Command(
        "completion",
        "Print the script that completes words with the Tab key.",
        None,
        ('eval "$(umamba completion bash)"', 'eval "$(umamba completion zsh)"'),
    ),
}


def program(*first: str) -> NoReturn:
    """Be the program: run the command line of this process, and end the process with the exit code.

    To take PyTorch and Lightning apart takes Python 0.2 to 0.7 s at the end of every command. The system frees all that
    at once, so the process ends as soon as its threads and all that asked to be called at the end are done.

    Args:
        first: words that stand before those of the command line, such as the command of a script.

    The exit code is that of the command, or 141 without a traceback if what reads the output, such as `head`, ended.
    """
    codes: list[int] = []
    atexit.register(_leave, codes)  # what is registered first is called last
    try:
        codes.append(main([*first, *sys.argv[1:]]))
        sys.stdout.flush()
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        codes[:] = [EXIT_CLOSED_PIPE]
    sys.exit(codes[0])


def _stdout_is_closed() -> bool:
    """Return whether what reads the output has ended, as `head` does; what is left to print is thrown away then."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _leave(codes: Sequence[int]) -> None:
    """End the process with the code of a command that returned one, unless a debugger or a profiler watches."""
    if codes and sys.gettrace() is None and sys.getprofile() is None:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(codes[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: the command and its arguments; None: those of this process.

    Returns:
        The exit code: 0, 2 after a user's mistake (which is printed), 1 if the memory did not suffice, 130 after
        Ctrl-C, or the command's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in _HELP:
        print(_overview())
        return 0
    name, *rest = given
    if name == "--version":
        print(f"umamba {__version__}")
        return 0
    try:
        return _run(name.replace("_", "-"), rest)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        full = disk_error(error) if isinstance(error, OSError) else None
        if full is not None:
            print(f"Error: {full}", file=sys.stderr)
            return EXIT_USER_ERROR
        lack = lack_of_memory(error)
        if lack is None:
            raise
        logging.getLogger(__name__).debug("The memory did not suffice here:", exc_info=True)
        print(f"Error: {_memory_message(name.replace('_', '-'), lack)}", file=sys.stderr)
        return EXIT_NO_MEMORY


def _memory_message(name: str, lack: str) -> str:
    """Return the message for a command that lacked memory: what could not be allocated, and what to lower."""
    keys = COMMANDS[name].memory if name in COMMANDS else ()
    lower = f", or lower {' or '.join(keys)}" if keys else ""
    return f"{name}: the memory does not suffice ({lack}). Give the program more memory{lower}."


def _run(name: str, arguments: list[str]) -> int:
    """Run a command, or print its help; return the exit code."""
    command = COMMANDS.get(name)
    if command is None:
        from umamba.settings.validate import wrong_choice

        raise UserError(wrong_choice("umamba", name, COMMANDS).replace("umamba=", "umamba "))
    if any(argument in _HELP[:2] for argument in arguments):
        from umamba.cli.help import command_help

        print(command_help(command))
        return 0
    _show_messages()
    if name != "completion":
        from umamba.cli.searched import with_search_path

        arguments = with_search_path(arguments)
    arguments = with_first_key(command, arguments)
    if command.record is None:
        return int(_function(command)(arguments) or 0)
    return _with_settings(name, command, arguments)


def with_first_key(command: Command, arguments: list[str]) -> list[str]:
    """Return the arguments of a command with the key of a first word that may stand without it.

    Args:
        command: the command.
        arguments: as typed.

    >>> with_first_key(COMMANDS["verify"], ["DIR", "device=cpu"])
    ['predictions=DIR', 'device=cpu']
    """
    if command.first is None or not arguments or "=" in arguments[0] or arguments[0].startswith(("-", "~")):
        return arguments
    return [f"{command.first}={arguments[0]}", *arguments[1:]]


def _with_settings(name: str, command: Command, arguments: list[str]) -> int:
    """Compose the settings of a command and run it; Hydra handles sweeps (-m) and its own options."""
    from umamba import settings
    from umamba.cli.arguments import checked_arguments, with_usage
    from umamba.cli.compose import settings_of
    from umamba.settings import InvalidSettings

    record = getattr(settings, str(command.record))
    arguments = checked_arguments(name, record, arguments)
    try:
        if not any(argument.startswith("-") for argument in arguments):
            return int(_function(command)(settings_of(record, arguments)) or 0)
        from umamba.cli.sweep import through_hydra

        return through_hydra(_function(command), record, [f"hydra.job.name=umamba-{name}", *arguments])
    except InvalidSettings as error:
        raise with_usage(error, name, record, arguments) from None


def _function(command: Command) -> Callable[[Any], int | None]:
    """Import the function that runs a command."""
    return import_module(f"umamba.cli.{command.module}").main  # type: ignore[no-any-return]


def _show_messages() -> None:
    """Show messages; if several processes train one run together (trainer=ddp), only the first one shows them."""
    import logging

    from umamba.io.voice import show_messages

    rank = next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), "0")
    show_messages(logging.INFO if rank == "0" else logging.WARNING)


def _overview() -> str:
    """Return the help of the program: a line for each command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.sentence}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"umamba {__version__}: train, compare and use U-Mamba and its peers for biomedical segmentation",
            "",
            "umamba COMMAND key=value ...          umamba COMMAND --help shows all keys of a command",
            "",
            *lines,
        ]
    )
