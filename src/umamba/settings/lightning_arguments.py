"""Read the arguments of the installed Lightning Trainer from its source, because importing Lightning takes seconds."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

# Arguments that this project sets itself, with the reason or the key to use instead.
RESERVED = {
    "callbacks": "this project's callbacks are always used",
    "logger": "use the logger group (logger=wandb or logger=csv)",
    "plugins": "this project's own plugin writes checkpoints",
    "default_root_dir": "the run folder follows from paths.runs",
    "gradient_clip_val": "use recipe.gradient_clip_norm",
}
_PLAIN = {"int": int, "float": float, "bool": bool, "str": str}


@cache
def trainer_arguments() -> dict[str, frozenset[type] | None]:
    """Return the Trainer's keyword arguments, each with the plain types that it accepts.

    Returns:
        Name -> types; None if the argument also accepts other types. Empty if Lightning is not installed.
    """
    spec = importlib.util.find_spec("lightning")
    if spec is None or spec.origin is None:
        return {}
    source = Path(spec.origin).parent / "pytorch" / "trainer" / "trainer.py"
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == "Trainer":
            for function in node.body:
                if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                    return {a.arg: _plain_types(a.annotation) for a in function.args.kwonlyargs}
    return {}


def _plain_types(annotation: ast.expr | None) -> frozenset[type] | None:
    """Return the plain types of an annotation such as Optional[Union[int, float]]; None if it has other types."""
    names = [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)] if annotation is not None else []
    types = {_PLAIN[name] for name in names if name in _PLAIN}
    optional = {type(None)} if "Optional" in names else set()
    if any(name not in _PLAIN and name not in ("Optional", "Union") for name in names) or not types:
        return None
    return frozenset(types | optional | ({int} if float in types else set()))
