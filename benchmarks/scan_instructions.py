"""Instructions of the Triton kernels of the scan and the convolution, for an NVIDIA GPU that need not be here.

python benchmarks/scan_instructions.py                      float32 for compute capability 9.0
python benchmarks/scan_instructions.py --arch 80 90 120 --dtype bf16

Each kernel is compiled as it is launched for a Mamba layer with 16 states. Triton's own ptxas and cuobjdump are used.

    registers, stack   of a thread; a stack means that registers did not fit
    loops              instructions of the inner loops of a warp, per token and state (per token for the convolution)
    SHFL, BAR          shuffles and barriers of the inner loops
"""

import argparse
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from umamba.networks.scan import triton_conv, triton_gradients, triton_kernels

STATES, TAPS = 16, 4
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_SCAN = {"SOFTPLUS": True, "CONSTANT": False, "STATES": STATES, "PADDED": STATES}
KERNELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "chunk_totals": (triton_kernels.chunk_totals, _SCAN),
    "outputs": (triton_kernels.outputs, _SCAN),
    "chunk_totals_back": (triton_gradients.chunk_totals_back, _SCAN),
    "gradients": (triton_gradients.gradients, {**_SCAN, "grad_B": None, "grad_C": None}),
    "carry_over": (triton_kernels.carry_over, {"STATES": STATES, "BACKWARD": False, "ROWS": 64}),
    "convolution": (triton_conv._forward, {"TAPS": TAPS}),
    "convolution_back": (triton_conv._backward, {"TAPS": TAPS, "PADDED": TAPS}),
}
# Arrays in the dtype of the layer; all others are in that of the states.
_DATA = ("u", "delta", "z", "B", "C", "grad", "out", "grad_u", "grad_delta", "grad_z", "x", "grad_x")
_LANES = ("u_d", "delta_d", "z_d", "B_n", "C_n", "grad_d", "grad_z_d", "x_d", "grad_x_d", "groups")  # strides of 1
_NUMBERS = ("channels", "length", "tokens", "chunks", "first", "span")


@dataclass(frozen=True)
class Loop:
    """An inner loop: instructions of one round; how many are shuffles, barriers, and moves of spilled registers."""

    instructions: int
    shuffles: int
    barriers: int
    spills: int


@dataclass(frozen=True)
class Compiled:
    """What a kernel needs; its inner loops, the longest first."""

    registers: int
    stack: int
    loops: tuple[Loop, ...]


def compile_kernel(name: str, arch: int, dtype: str) -> Compiled:
    """Compile a kernel and read its machine code.

    Args:
        name: key of `KERNELS`.
        arch: compute capability, such as 90.
        dtype: of the layer's arrays, "fp32" or "bf16".
    """
    kernel, given = KERNELS[name]
    constants: dict[str, Any] = {**given, **{each: 1 for each in _LANES if each in kernel.arg_names}}

    def kind(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        if argument in _NUMBERS or re.fullmatch(r".*_[btdgn]", argument):
            return "i32"
        return f"*{dtype}" if argument in _DATA else "*fp32"

    source = ASTSource(kernel, {argument: kind(argument) for argument in kernel.arg_names}, constants)
    warps = 4 if name == "carry_over" else 1
    found = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(found.asm["cubin"])
        command = [TOOL, "-res-usage", "-sass", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.findall(rf"\b{word}:(\d+)", listing)[-1]) for word in ("REG", "STACK"))
    return Compiled(registers, stack, inner_loops(listing))


def inner_loops(code: str) -> tuple[Loop, ...]:
    """Return the inner loops of a listing of cuobjdump: from the target of a branch backwards to that branch."""
    listed = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", code)]
    ranges = []
    for at, text in listed:
        target = re.findall(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if target and int(target[0], 16) < at:
            ranges.append((int(target[0], 16), at))
    inner = [r for r in ranges if not any(o != r and r[0] <= o[0] and o[1] <= r[1] for o in ranges)]
    bodies = [[text for at, text in listed if first <= at <= last] for first, last in inner]
    words = ("SHFL", "BAR.", r"LDL|STL")
    counts = [Loop(len(body), *(sum(bool(re.search(w, text)) for text in body) for w in words)) for body in bodies]
    return tuple(sorted(counts, key=lambda loop: -loop.instructions))


def per_element(kernels: dict[str, Compiled]) -> dict[str, float]:
    """Return the instructions per token and state: of the forward pass, of the backward pass, and of their parts."""
    unrolled, block = triton_kernels.UNROLLED.value * STATES, triton_gradients.BLOCK.value * STATES
    found = {name: kernels[name].loops[0].instructions / unrolled for name in ("chunk_totals", "outputs")}
    found["forward"] = sum(found.values())
    loops = kernels["gradients"].loops
    parts = {
        "chunk_totals_back": kernels["chunk_totals_back"].loops[0].instructions / unrolled,
        "replay": next(loop.instructions for loop in loops if not loop.shuffles) / block,
        "gradients": next(loop.instructions for loop in loops if loop.shuffles) / block,
    }
    return found | parts | {"backward": sum(parts.values())}


def main() -> None:
    """Compile all kernels and print what they need."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[90], help="compute capabilities")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of the layer's arrays")
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each capability")
    given = parser.parse_args()
    for arch in given.arch:
        kernels = {name: compile_kernel(name, arch, given.dtype) for name in KERNELS}
        elements = per_element(kernels)
        if given.json:
            print(json.dumps({"kernels": {n: asdict(k) for n, k in kernels.items()}, "elements": elements}))
            continue
        print(f"Triton {triton.__version__}, sm_{arch}, {given.dtype}")
        for name, kernel in kernels.items():
            loops = ", ".join(
                f"{o.instructions} ({o.shuffles} SHFL, {o.barriers} BAR, {o.spills} spills)" for o in kernel.loops
            )
            print(f"  {name:18} {kernel.registers:4} registers {kernel.stack:4} B stack; loops: {loops}")
        print("  per token and state: " + ", ".join(f"{name} {count:.1f}" for name, count in elements.items()))


if __name__ == "__main__":
    main()
