"""Time and memory of the selective scan on a CPU, compared with formulations in plain PyTorch.

python benchmarks/scan.py                      # mambapy is compared where it is installed (pip install mambapy)

    reference   a loop over the tokens, as in mamba_ssm's reference without CUDA
    mambapy     the parallel scan of mambapy, with the discretisation as in that package
    cpu         this project's compiled scan

python benchmarks/scan.py --against OTHER/src  # only the compiled scan: this revision and another checkout, in turns,
                                               # at sizes of the stages of the five plans of Table 2

The shape is B = 2, D = 64, N = 16, L = 4096 with D, z, a bias and softplus, in float32, with all threads of PyTorch.
The last lines give the time per token at the length of the CT plan's first stage. Times are the best of several calls,
taken in turns. Memory is the growth of the peak resident size in a new process (Linux), without the inputs. For GPUs
see benchmarks/scan_gpu.py.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import machine
from torch import Tensor

from umamba.networks.scan import selective_scan

BATCH, CHANNELS, STATES, LENGTH = 2, 64, 16, 4096
CT_TOKENS = 40 * 224 * 192  # of the CT plan's first stage
# (samples, channels of the scan, tokens): stages of the plans; the first ones are cut to what is measured quickly
STAGES = {
    "CT 1 and MR 1, part": (2, 64, 131_072),
    "CT 3": (2, 256, 20 * 56 * 48),
    "CT 6, channels as tokens": (2, 840, 320),
    "MR 2D 2, part": (8, 128, 160 * 160),
    "endoscopy 4": (13, 512, 48 * 80),
    "microscopy 6": (12, 1024, 16 * 16),
}
CALLS = {"reference": 2, "mambapy": 4, "cpu": 12}

Inputs = dict[str, Tensor]


def make_inputs(batch: int, length: int, channels: int = CHANNELS) -> Inputs:
    """Return random arguments of the scan that require gradients."""
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "u": (batch, channels, length),
        "delta": (batch, channels, length),
        "A": (channels, STATES),
        "B": (batch, STATES, length),
        "C": (batch, STATES, length),
        "D": (channels,),
        "z": (batch, channels, length),
        "delta_bias": (channels,),
    }
    inputs = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    inputs["A"] = -torch.arange(1.0, STATES + 1).repeat(channels, 1)
    inputs["delta"] -= 3
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def run_reference(inputs: Inputs) -> Tensor:
    """Run the loop over the tokens."""
    step = F.softplus(inputs["delta"] + inputs["delta_bias"][:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", step, inputs["A"]))
    driven = torch.einsum("bdl,bnl,bdl->bdln", step, inputs["B"], inputs["u"])
    state = torch.zeros(*step.shape[:2], STATES)
    outputs = []
    for t in range(step.shape[2]):
        state = decay[:, :, t] * state + driven[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, inputs["C"][:, :, t]))
    y = torch.stack(outputs, dim=2) + inputs["u"] * inputs["D"][:, None]
    return y * F.silu(inputs["z"])


def run_mambapy(inputs: Inputs) -> Tensor:
    """Run mambapy's parallel scan."""
    from mambapy.pscan import pscan

    tokens_first = {name: inputs[name].transpose(1, 2) for name in ("u", "delta", "B", "C", "z")}
    step = F.softplus(tokens_first["delta"] + inputs["delta_bias"])
    decay = torch.exp(step.unsqueeze(-1) * inputs["A"])
    driven = (step * tokens_first["u"]).unsqueeze(-1) * tokens_first["B"].unsqueeze(2)
    states = pscan(decay, driven)
    y = (states @ tokens_first["C"].unsqueeze(-1)).squeeze(3) + inputs["D"] * tokens_first["u"]
    return (y * F.silu(tokens_first["z"])).transpose(1, 2)


def run_cpu(inputs: Inputs) -> Tensor:
    """Run this project's compiled scan."""
    out = selective_scan(**inputs, delta_softplus=True, backend="cpu")
    assert isinstance(out, Tensor)
    return out


SIDES: dict[str, Callable[[Inputs], Tensor]] = {"reference": run_reference, "mambapy": run_mambapy, "cpu": run_cpu}


def call(side: str, inputs: Inputs, backward: bool) -> float:
    """Return the seconds of one call of a side."""
    start = time.perf_counter()
    if backward:
        torch.autograd.grad(SIDES[side](inputs).sum(), list(inputs.values()))
    else:
        with torch.no_grad():
            SIDES[side](inputs)
    return time.perf_counter() - start


def extra_memory(side: str) -> float:
    """Return the growth of this process's peak memory by a forward and a backward pass, MB."""
    inputs = make_inputs(BATCH, LENGTH)
    call(side, {name: tensor[..., :64].detach().requires_grad_() if tensor.ndim == 3 else tensor
                for name, tensor in inputs.items()}, True)  # fmt: skip
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = resident_kb("VmRSS")
    call(side, inputs, True)
    return (resident_kb("VmHWM") - before) / 1024


def resident_kb(what: str) -> int:
    """Return this process's resident memory in kB: now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def answer() -> None:
    """Measure the compiled scan at each size that is asked for on stdin: print the seconds of the best call."""
    known, inputs = None, make_inputs(1, 16)
    for line in sys.stdin:
        *size, rows, backward, calls = json.loads(line)
        if known != (size, rows):
            known, inputs = (size, rows), make_inputs(size[0], size[2], size[1])
            if rows:  # channels side by side, as linear layers leave them
                inputs = {
                    name: tensor.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
                    if tensor.ndim == 3
                    else tensor
                    for name, tensor in inputs.items()
                }
            call("cpu", inputs, True)
        print(min(call("cpu", inputs, backward) for _ in range(calls)), flush=True)


def compare(other: str) -> None:
    """Print the times of this revision and of another one, whose `src` folder is given, and their ratio."""
    sources = {"here": str(Path(__file__).parents[1] / "src"), "there": other}
    sides = {
        side: subprocess.Popen(
            [sys.executable, __file__, "--answer"],
            env={**os.environ, "PYTHONPATH": source},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side, source in sources.items()
    }

    def ask(side: str, *job: object) -> float:
        process = sides[side]
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(job), file=process.stdin, flush=True)
        return float(process.stdout.readline())

    for name, size in {"the size above": (BATCH, CHANNELS, LENGTH), **STAGES}.items():
        calls = 3 if size[0] * size[1] * size[2] < 3_000_000 else 1
        for rows in (False, True):
            for backward in (False, True):
                best = {side: float("inf") for side in sides}
                for _ in range(4):
                    for side in sides:
                        best[side] = min(best[side], ask(side, *size, rows, backward, calls))
                print(
                    f"{name} {size}, {'tokens' if rows else 'channels'} as rows, "
                    f"{'forward and backward' if backward else 'forward'}: here {best['here'] * 1e3:.2f} ms, "
                    f"there {best['there'] * 1e3:.2f} ms, {best['there'] / best['here']:.2f} x",
                    flush=True,
                )
    for process in sides.values():
        process.communicate()


def main() -> None:
    """Measure all sides and print their ratios to this project's scan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", choices=SIDES, help="print the extra memory of one side, nothing else")
    parser.add_argument("--against", metavar="SRC", help="another checkout's src folder, whose scan is compared")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        answer()
        return
    if arguments.memory:
        print(extra_memory(arguments.memory))
        return
    print(f"{machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    if arguments.against:
        compare(arguments.against)
        return
    sides = list(SIDES)
    if importlib.util.find_spec("mambapy") is None:
        sides.remove("mambapy")
        print("mambapy is not installed (pip install mambapy), so it is not compared.")
    inputs = make_inputs(BATCH, LENGTH)
    expected = run_reference(inputs).detach()
    for side in sides:
        error = float((SIDES[side](inputs).detach() - expected).abs().max() / expected.abs().max())
        print(f"{side}: largest difference from the reference {error:.1e}")
    best: dict[tuple[str, bool], float] = {}
    for turn in range(max(CALLS.values())):
        for side in (side for side in sides if turn < CALLS[side]):
            for backward in (
                (False, True) if side != "reference" else (False,)
            ):  # backward through the loop takes minutes
                seconds = call(side, inputs, backward)
                best[side, backward] = min(seconds, best.get((side, backward), seconds))
    command = [sys.executable, __file__, "--memory"]
    memory = {
        side: float(subprocess.run([*command, side], check=True, capture_output=True, text=True).stdout)
        for side in sides
        if side != "reference"
    }
    print(f"B {BATCH}, D {CHANNELS}, N {STATES}, L {LENGTH}")
    for side in sides:
        rows = [("forward", best[side, False] * 1e3, best["cpu", False] * 1e3, "ms")]
        if side in memory:
            rows.append(("forward and backward", best[side, True] * 1e3, best["cpu", True] * 1e3, "ms"))
            rows.append(("extra memory", memory[side], memory["cpu"], "MB"))
        for what, value, ours, unit in rows:
            print(f"  {side:10} {what:21} {value:10.1f} {unit} {value / ours:6.1f} x")
    short, long = make_inputs(1, LENGTH), make_inputs(1, CT_TOKENS)
    for backward in (False, True):
        per_token = [
            min(call("cpu", each, backward) for _ in range(calls)) / each["u"].shape[2]
            for each, calls in ((short, 20), (long, 2))
        ]
        what = "forward and backward" if backward else "forward"
        print(
            f"{what}, B 1: {per_token[0] * 1e9:.0f} ns a token at L {LENGTH}, {per_token[1] * 1e9:.0f} ns at L "
            f"{CT_TOKENS} ({per_token[1] / per_token[0]:.2f} x)"
        )


if __name__ == "__main__":
    main()
