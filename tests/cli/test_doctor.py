"""The doctor reports what works after a real pass, and the reason and remedy of what does not."""

from typing import Any

import pytest
import torch

from umamba.cli import doctor
from umamba.inference import engine
from umamba.io.voice import shown
from umamba.networks.scan import backend_states as report


def test_the_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with shown():
        assert doctor.main() == 0
    said = capsys.readouterr().out
    parts = ("umamba", torch.__version__, "works,", "Prediction on the CPU: ", "Selective scan", "chosen", "reference")
    for part in parts:
        assert part in said


def test_the_engine_of_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "openvino_problem", lambda: None)
    monkeypatch.setattr(doctor.metadata, "version", lambda package: f"{package} 1.2")
    assert "openvino openvino 1.2 works" in doctor.engine_line()
    monkeypatch.undo()
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    assert doctor.engine_line() == (
        "Prediction on the CPU: torch, because openvino is not installed; pip install 'umamba[cpu]' makes prediction "
        "on CPUs several times faster."
    )


def test_a_network_that_does_not_train_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> torch.nn.Module:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor, "build_network", broken)
    assert doctor.try_device("cpu").problem == "RuntimeError: no kernel image"
    with shown():
        assert doctor.main() == doctor.EXIT_BROKEN
    assert "FAILED: RuntimeError: no kernel image" in capsys.readouterr().out


def test_gradients_that_are_not_finite_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    build = doctor.build_network

    def poisoned(*arguments: Any) -> torch.nn.Module:
        network = build(*arguments)
        next(network.parameters()).data.fill_(float("nan"))
        return network

    monkeypatch.setattr(doctor, "build_network", poisoned)
    assert doctor.try_device("cpu").problem == "gradients are missing or not finite"


def test_refused_backends_have_their_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = {"triton": "triton is not installed.", "cuda": "mamba_ssm is not installed."}
    monkeypatch.setattr(report, "why_not", lambda name, device: refusals.get(name))
    monkeypatch.setattr(report, "resolve_backend", lambda device, backend: "reference")
    triton, cuda, reference = report.backend_states("cuda")
    assert (triton.name, triton.remedy) == ("triton", "pip install 'triton>=3.3'")
    assert cuda.remedy is not None
    assert cuda.remedy.startswith("MAMBA_KEEP_CUDA_BUILD=TRUE pip install")
    assert (reference.chosen, reference.refusal, reference.remedy) == (True, None, None)
    rebuilt = report.remedy_of(
        "cuda", "selective_scan_cuda is not installed."
    )  # mamba_ssm is there without its kernels
    assert rebuilt.startswith("MAMBA_KEEP_CUDA_BUILD=TRUE pip install --force-reinstall")
    assert report.remedy_of("cuda", "einops is not installed.") == "pip install einops"
    assert "--force-reinstall" in report.remedy_of("cpu", "ImportError: needs NumPy 2.3 or less.")


def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    reason, remedy = doctor.no_gpu_reason()
    assert "without CUDA" in reason
    assert remedy is not None
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(doctor.os.path, "exists", lambda path: False)
    assert doctor.no_gpu_reason() == ("no NVIDIA driver is loaded; there may be no GPU", None)
    monkeypatch.setattr(doctor.os.path, "exists", lambda path: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor.no_gpu_reason() == ("CUDA_VISIBLE_DEVICES hides all GPUs", "unset CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "driver does not work with CUDA 12.6" in doctor.no_gpu_reason()[0]
