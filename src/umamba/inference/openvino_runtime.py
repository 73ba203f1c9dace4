"""OpenVINO without its usage statistics, and what its CPU plugin can do here.

`import openvino` reports itself to a server on the internet wherever the package openvino_telemetry is installed, which
openvino requires. A program for patients' images must not do that unasked, so that package is hidden from OpenVINO,
which then works without it. Everything else here gets OpenVINO from this module.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # an import of it fails from now on

import openvino  # noqa: E402

_HINTS = {"bf16-mixed": ("BF16", "bf16"), "16-mixed": ("FP16", "f16")}

__all__ = ["inference_precision", "openvino"]


def inference_precision(precision: str) -> str:
    """Return OpenVINO's name of the precision that it computes in.

    Args:
        precision: Lightning's name. bf16-mixed and 16-mixed become bf16 and f16 where this processor multiplies these
            types in hardware. Everything else is f32, because emulation is slower and no more exact.
    """
    capability, hint = _HINTS.get(precision, ("", "f32"))
    return hint if capability in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
