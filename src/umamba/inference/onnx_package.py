"""The packages onnx and onnxruntime, which only exporting to ONNX needs."""

from importlib.util import find_spec

from umamba.io import UserError

NEEDED = ("onnx", "onnxruntime")


def require_onnx() -> None:
    """Refuse to begin where a package is missing.

    Raises:
        UserError: onnx or onnxruntime is not installed.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(
            f"format=onnx: needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed. "
            "Install with: pip install 'umamba[onnx]'"
        )
