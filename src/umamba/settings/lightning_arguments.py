"""Read the arguments of the installed Lightning's Trainer and callbacks from its source, because its import is slow."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

# Arguments that this project sets itself, with the reason or the key to use instead.
RESERVED = {
    "max_steps": "training is counted in epochs: use trainer.max_epochs and trainer.limit_train_batches",
    "min_steps": "training is counted in epochs: use trainer.max_epochs and trainer.limit_train_batches",
    "logger": "use the logger group (logger=wandb or logger=csv)",
    "plugins": "this project's own plugin writes checkpoints",
    "default_root_dir": "the run folder follows from paths.runs",
    "gradient_clip_val": "use recipe.gradient_clip_norm",
}
# What Lightning has under another name than users may expect, with the key to use.
ELSEWHERE = {
    "early_stopping": "use trainer.callbacks=[{name: EarlyStopping, monitor: val/patch_dice, mode: max, patience: 50}]",
}
# Lightning's callbacks that cannot be used here, with the reason or the key to use instead.
_ABSTRACT = "it is made to be inherited; name a class of your own, module:Class"
_SAVES = "this project saves the last, previous and best checkpoint (predict.checkpoint=best)"
REFUSED_CALLBACKS = {
    **dict.fromkeys(("Callback", "Checkpoint", "BaseFinetuning", "BasePredictionWriter", "ProgressBar"), _ABSTRACT),
    **dict.fromkeys(
        ("LambdaCallback", "ThroughputMonitor"), "it needs functions; name a class of your own, module:Class"
    ),
    **dict.fromkeys(("ModelCheckpoint", "OnExceptionCheckpoint"), _SAVES),
    **dict.fromkeys(("RichProgressBar", "TQDMProgressBar"), "use trainer.enable_progress_bar"),
    **dict.fromkeys(("EMAWeightAveraging", "WeightAveraging"), "use recipe.weight_averaging"),
    "StochasticWeightAveraging": "it sets the learning rate, which the recipe does; use recipe.weight_averaging",
    "LearningRateFinder": "use trainer.find_lr",
    "BatchSizeFinder": "the plan says the batch size; use plan.batch_size",
    "BackboneFinetuning": "the networks have no attribute 'backbone'",
    "Timer": "it can end training within an epoch; use trainer.max_time",
}
_PLAIN = {"int": int, "float": float, "bool": bool, "str": str}


@cache
def trainer_arguments() -> dict[str, frozenset[type] | None]:
    """Return the Trainer's keyword arguments, each with the plain types that it accepts.

    Returns:
        Name -> types; None if the argument also accepts other types. Empty if Lightning is not installed.
    """
    init = _init("trainer/trainer.py", "Trainer")
    return {} if init is None else {a.arg: _plain_types(a.annotation) for a in init.args.kwonlyargs}


@cache
def callback_modules() -> dict[str, str]:
    """Return Lightning's callbacks, each with its module; empty if Lightning is not installed."""
    tree = _tree("callbacks/__init__.py")
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)] if tree is not None else []
    return {alias.name: str(node.module) for node in imports for alias in node.names}


@cache
def callback_arguments(name: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the arguments of one of Lightning's callbacks, and those of them without a default.

    Args:
        name: its class.

    Returns:
        Two lists of names; None if the class accepts any argument, or inherits its arguments.
    """
    module = callback_modules()[name].removeprefix("lightning.pytorch.").replace(".", "/")
    init = _init(f"{module}.py", name)
    if init is None or init.args.kwarg is not None:
        return None
    positional, keywords = init.args.args[1:], init.args.kwonlyargs
    free = len(positional) - len(init.args.defaults)
    needed = [a.arg for a in positional[:free]]
    needed += [a.arg for a, default in zip(keywords, init.args.kw_defaults, strict=True) if default is None]
    return tuple(a.arg for a in (*positional, *keywords)), tuple(needed)


def _tree(path: str) -> ast.Module | None:
    """Return the parsed source of a file of lightning.pytorch; None if there is none."""
    spec = importlib.util.find_spec("lightning")
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).parent / "pytorch" / path
    return ast.parse(source.read_text(encoding="utf-8")) if source.is_file() else None


def _init(path: str, name: str) -> ast.FunctionDef | None:
    """Return the constructor of a class in a file of lightning.pytorch."""
    tree = _tree(path)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            for function in node.body:
                if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                    return function
    return None


def _plain_types(annotation: ast.expr | None) -> frozenset[type] | None:
    """Return the plain types of an annotation such as Optional[Union[int, float]]; None if it has other types."""
    names = [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)] if annotation is not None else []
    types = {_PLAIN[name] for name in names if name in _PLAIN}
    optional = {type(None)} if "Optional" in names else set()
    if any(name not in _PLAIN and name not in ("Optional", "Union") for name in names) or not types:
        return None
    return frozenset(types | optional | ({int} if float in types else set()))
